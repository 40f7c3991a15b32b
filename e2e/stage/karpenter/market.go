package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	kwok "sigs.k8s.io/karpenter/kwok/cloudprovider"
	v1 "sigs.k8s.io/karpenter/pkg/apis/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/scheduling"
)

// entry changes every offering that it matches; an empty field matches all. Later entries win.
type entry struct {
	InstanceType string   `json:"instanceType"`
	Zone         string   `json:"zone"`
	CapacityType string   `json:"capacityType"`
	Available    *bool    `json:"available"`
	Price        *float64 `json:"price"`
}

func (e entry) matches(instanceType string, offering *cloudprovider.Offering) bool {
	return (e.InstanceType == "" || e.InstanceType == instanceType) &&
		(e.Zone == "" || e.Zone == offering.Zone()) &&
		(e.CapacityType == "" || e.CapacityType == offering.CapacityType())
}

// market is the kwok provider under the conditions that a file states (path: a JSON list of entries, read again when it changes).
// A sold-out launch fails the way real providers fail, so that NodeClaims, Events and retries behave as in a cloud.
type market struct {
	cloudprovider.CloudProvider // whatever does not depend on the market
	client                      client.Client
	path                        string

	mu       sync.Mutex
	modified time.Time
	types    []*cloudprovider.InstanceType
	provider cloudprovider.CloudProvider
}

// current returns the instance types under the present market, made anew for each version of it: Karpenter computes a type's derived
// values once, so a type must not change under it.
func (m *market) current(ctx context.Context) ([]*cloudprovider.InstanceType, cloudprovider.CloudProvider, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	info, err := os.Stat(m.path)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the market, %w", err)
	}
	if m.provider != nil && info.ModTime().Equal(m.modified) {
		return m.types, m.provider, nil
	}
	raw, err := os.ReadFile(m.path)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the market, %w", err)
	}
	var entries []entry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, nil, fmt.Errorf("reading the market %s, %w", m.path, err)
	}
	types, err := kwok.ConstructInstanceTypes(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, instanceType := range types {
		for _, offering := range instanceType.Offerings {
			for _, entry := range entries {
				if !entry.matches(instanceType.Name, offering) {
					continue
				}
				if entry.Available != nil {
					offering.Available = *entry.Available
				}
				if entry.Price != nil {
					offering.Price = *entry.Price
				}
			}
		}
	}
	m.modified, m.types, m.provider = info.ModTime(), types, kwok.NewCloudProvider(ctx, m.client, types)
	return m.types, m.provider, nil
}

func (m *market) GetInstanceTypes(ctx context.Context, _ *v1.NodePool) ([]*cloudprovider.InstanceType, error) {
	types, _, err := m.current(ctx)
	return types, err
}

// Create launches the cheapest offering that is to be had. The claim goes on with only the types that have one: the kwok provider
// takes a sold-out type for free of charge.
func (m *market) Create(ctx context.Context, claim *v1.NodeClaim) (*v1.NodeClaim, error) {
	types, provider, err := m.current(ctx)
	if err != nil {
		return nil, err
	}
	requirements := scheduling.NewNodeSelectorRequirementsWithMinValues(claim.Spec.Requirements...)
	wanted := requirements.Get(corev1.LabelInstanceTypeStable)
	var available []string
	for _, instanceType := range types {
		if wanted.Has(instanceType.Name) && len(instanceType.Offerings.Available().Compatible(requirements)) > 0 {
			available = append(available, instanceType.Name)
		}
	}
	if len(available) == 0 {
		return nil, cloudprovider.NewInsufficientCapacityError(fmt.Errorf("sold out: %v", wanted.Values()))
	}
	narrowed := claim.DeepCopy()
	for i := range narrowed.Spec.Requirements {
		if narrowed.Spec.Requirements[i].Key == corev1.LabelInstanceTypeStable {
			narrowed.Spec.Requirements[i].Values = available
		}
	}
	return provider.Create(ctx, narrowed)
}
