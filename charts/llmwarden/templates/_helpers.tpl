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
