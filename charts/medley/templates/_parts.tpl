{{- /* Names are fixed and not made from the release's: the chart is installed once per cluster, and the operator binds roles by name. */ -}}

{{- define "medley.labels" -}}
{{ include "medley.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: medley
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "medley.selector" -}}
app.kubernetes.io/name: medley
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "medley.image" -}}
{{- required (printf "images.%s: name the image that you built from images/ of the repository and pushed (--set images.%s=...)" .name .name) (index .root.Values.images .name) -}}
{{- end }}

{{- /* Pod Security "restricted". */ -}}
{{- define "medley.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "medley.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Never on spot nodes, in the words of Karpenter and of the three clouds; never on medley's own GPU nodes. */ -}}
{{- define "medley.affinity" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
    - matchExpressions:
      - {key: karpenter.sh/capacity-type, operator: NotIn, values: [spot]}
      - {key: eks.amazonaws.com/capacityType, operator: NotIn, values: [SPOT]}
      - {key: cloud.google.com/gke-spot, operator: NotIn, values: ["true"]}
      - {key: kubernetes.azure.com/scalesetpriority, operator: NotIn, values: [spot]}
      - {key: medley.dev/accelerator-class, operator: DoesNotExist}
{{- end }}

{{- /* Where pods of this chart may run; used by the operator, the test and the release job. */ -}}
{{- define "medley.placement" -}}
affinity:
  {{- include "medley.affinity" . | nindent 2 }}
{{- with .Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
