{{/* [REGISTRY/]groundplane/NAME:TAG. Arguments: name, root, tag (optional). */}}
{{- define "region.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}groundplane/{{ .name }}:{{ .tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Labels that a selector may use. Arguments: name, root. */}}
{{- define "region.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Values.region }}
{{- end }}

{{/* Labels of everything the chart makes. Arguments: name, root. */}}
{{- define "region.labels" -}}
{{ include "region.selector" . }}
app.kubernetes.io/part-of: groundplane
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
groundplane.io/region: {{ .root.Values.region }}
{{- end }}

{{/* Labels of a pod: nothing that changes with the chart, or every upgrade would roll what it does not touch. Arguments: name, root. */}}
{{- define "region.podLabels" -}}
{{ include "region.selector" . }}
app.kubernetes.io/part-of: groundplane
groundplane.io/region: {{ .root.Values.region }}
{{- end }}

{{/* Annotations that roll a pod when what it mounts has changed. Arguments: root, secrets (list of names), config (optional text). */}}
{{- define "region.checksums" -}}
{{- $checksums := dict }}
{{- range $name := .secrets }}
{{- $_ := set $checksums (printf "checksum/%s" $name) (get $.root.Values.secretChecksums $name | default "none") }}
{{- end }}
{{- with .config }}
{{- $_ := set $checksums "checksum/config" (sha256sum .) }}
{{- end }}
{{- toYaml $checksums }}
{{- end }}

{{/* Pod security, the "restricted" profile of the Pod Security Standards. */}}
{{- define "region.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}
{{- define "region.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities:
  drop: [ALL]
{{- end }}

{{/* What every pod has: pull secrets, service account, security. Arguments: name, root, token (bool). */}}
{{- define "region.pod" -}}
serviceAccountName: {{ .name }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
securityContext:
  {{- include "region.podSecurity" . | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* ServiceAccount of a component. Arguments: name, root. */}}
{{- define "region.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "region.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

{{/* Headless Service by which Prometheus finds every pod of a component (one address each). Arguments: name, root. */}}
{{- define "region.metricsService" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}-metrics
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "region.labels" . | nindent 4 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "region.selector" . | nindent 4 }}
  ports:
    - name: metrics
      port: 9090
      targetPort: health
{{- end }}

{{/* One data PVC, not a claim template: a StatefulSet's templates can't be changed, so its size could not either.
     Arguments: name, root, size. */}}
{{- define "region.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .name }}-data
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "region.labels" . | nindent 4 }}
  annotations:
    # Uninstalling the chart never deletes data; deleting the Region deletes the namespace and all in it.
    helm.sh/resource-policy: keep
spec:
  accessModes: [ReadWriteOnce]
  {{- with .root.Values.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .size }}
{{- end }}

{{/* What kube-score should not mind. Tags are versions and never move, and images may be imported into nodes with no registry at all;
     a StatefulSet here has one pod, reached at the Service's own address. */}}
{{- define "region.scoring" -}}
kube-score/ignore: container-image-pull-policy,statefulset-has-servicename
{{- end }}
