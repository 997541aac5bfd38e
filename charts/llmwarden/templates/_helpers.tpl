{{/* Labels of every object. */}}
{{- define "llmwarden.labels" -}}
app.kubernetes.io/name: llmwarden
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Who the controller is to the API server. There is one controller in a cluster, so its names are fixed. */}}
{{- define "llmwarden.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:llmwarden-controller
{{- end }}

{{/* The subjects of every binding. */}}
{{- define "llmwarden.subjects" -}}
- kind: ServiceAccount
  name: llmwarden-controller
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* Part of a policy's spec: it holds for the controller's requests alone. */}}
{{- define "llmwarden.onlyController" -}}
matchConditions:
  - name: from-the-controller
    expression: request.userInfo.username == '{{ include "llmwarden.username" . }}'
{{- end }}

{{/* CEL: two maps are the same, some keys aside. By their keys, so that fields of a later Kubernetes are compared too. */}}
{{- define "llmwarden.same" -}}
{{ .new }}.all(k, k in {{ .except }} || (k in {{ .old }} && {{ .new }}[k] == {{ .old }}[k]))
&& {{ .old }}.all(k, k in {{ .except }} || k in {{ .new }})
{{- end }}

{{/* What selects the controller's pods. */}}
{{- define "llmwarden.selector" -}}
app.kubernetes.io/name: llmwarden
app.kubernetes.io/component: controller
{{- end }}

{{/* An image: by its digest, or by its tag, or by the tag of this version. */}}
{{- define "llmwarden.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .chart.AppVersion }}
{{- end }}
{{- end }}

{{/* A map of quantities as a flag wants them: cpu=10m,memory=16Mi. */}}
{{- define "llmwarden.quantities" -}}
{{- $all := list }}
{{- range $resource, $quantity := . }}{{ $all = append $all (printf "%s=%v" $resource $quantity) }}{{ end }}
{{- join "," $all }}
{{- end }}

{{/* CEL: something is asked of the controller: an access, another spec, or a rotation. */}}
{{- define "llmwarden.asks" -}}
request.operation == 'CREATE' || object.spec != oldObject.spec
|| !({{ include "llmwarden.said" (dict "object" "object" "annotation" "rotate") }} in ['', {{ include "llmwarden.said" (dict "object" "oldObject" "annotation" "rotate") }}])
{{- end }}

{{/* CEL: an annotation of ours; empty when it is not there. */}}
{{- define "llmwarden.said" -}}
{{ .object }}.metadata.?annotations[?'llmwarden.io/{{ .annotation }}'].orValue('')
{{- end }}

{{/* Part of an entry of the webhook configuration: where the controller answers, and what happens when it does not. */}}
{{- define "llmwarden.answers" -}}
name: {{ .name }}
admissionReviewVersions: [v1]
clientConfig:
  {{- /* No caBundle: the controller keeps it, and what helm does not write it does not take away. */}}
  {{- with .root.Values.webhook.url }}
  url: {{ trimSuffix "/inject" . }}{{ $.path }}
  {{- else }}
  service:
    name: llmwarden-webhook
    namespace: {{ .root.Release.Namespace }}
    path: {{ .path }}
    port: 443
  {{- end }}
failurePolicy: {{ .failurePolicy }}
timeoutSeconds: {{ .timeout }}
sideEffects: None
matchPolicy: Equivalent
{{- end }}

{{/* One entry of the webhook configuration, for pods. */}}
{{- define "llmwarden.webhook" -}}
{{ include "llmwarden.answers" (merge (dict "path" "/inject") .) }}
# A pod that a later webhook gave more containers is seen again.
reinvocationPolicy: IfNeeded
rules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
    scope: Namespaced
matchConditions:
  - name: annotated
    expression: >-
      {{ .condition }}
namespaceSelector:
  {{- with .root.Values.webhook.namespaceSelector.matchLabels }}
  matchLabels:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  matchExpressions:
    # Where the controller's own pods are nobody else must be needed to create them.
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: {{ list "kube-system" "kube-public" "kube-node-lease" .root.Release.Namespace | uniq | toJson }}
    {{- with .namespaces }}
    - key: kubernetes.io/metadata.name
      operator: In
      values: {{ toJson . }}
    {{- end }}
    {{- with .root.Values.webhook.namespaceSelector.matchExpressions }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
