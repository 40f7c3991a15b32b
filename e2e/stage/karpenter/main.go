// Karpenter's own core over its kwok provider, with a market: offerings can be sold out and can change their price while it runs.
//
// The kwok provider makes a NodeClaim into a bare Node object; the stage's cloud agent boots a real kubelet for it.
package main

import (
	"os"

	"sigs.k8s.io/controller-runtime/pkg/log"
	kwok "sigs.k8s.io/karpenter/kwok/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/cloudprovider/overlay"
	"sigs.k8s.io/karpenter/pkg/controllers"
	"sigs.k8s.io/karpenter/pkg/controllers/state"
	"sigs.k8s.io/karpenter/pkg/operator"
)

func main() {
	ctx, op := operator.NewOperator()
	types, err := kwok.ConstructInstanceTypes(ctx)
	if err != nil { // upstream goes on with no types at all, which looks like a market that is sold out
		log.FromContext(ctx).Error(err, "reading the instance types")
		os.Exit(1)
	}
	market := &market{
		CloudProvider: kwok.NewCloudProvider(ctx, op.GetClient(), types),
		client:        op.GetClient(),
		path:          os.Getenv("MARKET_FILE"),
	}
	decorated := overlay.Decorate(market, op.GetClient(), op.InstanceTypeStore)
	cluster := state.NewCluster(op.Clock, op.GetClient(), decorated)
	op.WithControllers(ctx, controllers.NewControllers(
		ctx, op.Manager, op.Clock, op.GetClient(), op.EventRecorder, decorated, market, cluster, op.InstanceTypeStore,
	)...).Start(ctx)
}
