{{/* [REGISTRY/]groundplane/NAME:TAG. Arguments: name, root. */}}
{{- define "core.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}groundplane/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Labels that a selector may use. Arguments: name, root. */}}
{{- define "core.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Labels of a pod. Arguments: name, root. */}}
{{- define "core.podLabels" -}}
{{ include "core.selector" . }}
app.kubernetes.io/part-of: groundplane
{{- end }}

{{/* Labels of everything the chart makes. Arguments: name, root. */}}
{{- define "core.labels" -}}
{{ include "core.podLabels" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What every pod has: pull secrets, service account, security. Arguments: name, root, token (bool), account (name when empty). */}}
{{- define "core.pod" -}}
serviceAccountName: {{ .account | default .name }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "core.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities:
  drop: [ALL]
{{- end }}

{{/* Arguments: name, root. */}}
{{- define "core.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .account | default .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "core.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

{{/* One pod at a time may be moved away, and one that is broken anyway always. Arguments: name, root. */}}
{{- define "core.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "core.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "core.selector" . | nindent 6 }}
{{- end }}

{{/* What kube-score should not mind. Tags are versions and never move, and images may be imported into nodes with no registry at all. */}}
{{- define "core.scoring" -}}
kube-score/ignore: container-image-pull-policy
{{- end }}
