{{/*
One of our Node services: ServiceAccount, Deployment, Services, PodDisruptionBudget.

Arguments:
  root      $
  name      name of the service; the bundle is /opt/groundplane/NAME.js, the certificate Secret tls-NAME
  replicas  number of pods (1)
  token     whether the pod gets a token for the Kubernetes API (false)
  heap      limit of V8's old space in MiB; request and limit of memory follow from it
  young     limit of V8's semi-spaces in MiB (1)
  buffers   MiB beside the heap, for what connections take outside of it (160)
  env       map of environment variables beside the common ones
  mounts    list of {name, path, secret | configMap | image, items?}
  ports     list of {name, port}: further ports of Service and container
  grace     seconds to stop (30)
*/}}
{{- define "region.nodeService" -}}
{{- $root := .root }}
{{- $name := .name }}
{{- $replicas := .replicas | default 1 | int }}
{{- $heap := int .heap }}
{{- $mounts := prepend (.mounts | default list) (dict "name" "tls" "path" "/etc/groundplane/tls" "secret" (printf "tls-%s" $name)) }}
{{- /* Certificates are read again while the service runs (services/kit/tls.ts); only other Secrets need a new pod. */}}
{{- $secrets := list }}
{{- range $mounts }}{{ if and .secret (not (hasPrefix "tls-" .secret)) }}{{ $secrets = append $secrets .secret }}{{ end }}{{ end }}
{{ include "region.serviceAccount" . }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "region.labels" . | nindent 4 }}
  annotations:
    {{- include "region.scoring" . | nindent 4 }}
spec:
  replicas: {{ $replicas }}
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
  selector:
    matchLabels:
      {{- include "region.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "region.podLabels" . | nindent 8 }}
      {{- if or $secrets .config }}
      annotations:
        {{- include "region.checksums" (dict "root" $root "secrets" $secrets "config" .config) | nindent 8 }}
      {{- end }}
    spec:
      {{- include "region.pod" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ .grace | default 30 }}
      {{- if gt $replicas 1 }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "region.selector" . | nindent 14 }}
      {{- end }}
      containers:
        - name: {{ $name }}
          image: {{ include "region.image" (dict "name" "services" "root" $root) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [node, /opt/groundplane/{{ $name }}.js]
          env:
            - name: REGION
              value: {{ $root.Values.region }}
            - name: DOMAIN
              value: {{ $root.Values.domain }}
            - name: NAMESPACE
              value: {{ $root.Release.Namespace }}
            - name: VERSION
              value: {{ $root.Values.image.tag | default $root.Chart.AppVersion | quote }}
            - name: POD_NAME
              valueFrom:
                fieldRef:
                  fieldPath: metadata.name
            - name: POD_IP
              valueFrom:
                fieldRef:
                  fieldPath: status.podIP
            # Small heaps: a young generation of 1 MiB halves costs a little CPU and saves some 30 MB at rest. Where hosts come in storms
            # it costs them a fifth of their CPU, since most of what lives for one host's arrival gets old in it.
            - name: NODE_OPTIONS
              value: --max-semi-space-size={{ .young | default 1 | int }} --max-old-space-size={{ $heap }}
            - name: UV_THREADPOOL_SIZE
              value: "2"
            # glibc makes an arena per thread otherwise, each with memory that it never gives back.
            - name: MALLOC_ARENA_MAX
              value: "2"
            # Large buffers, as argon2id takes them, go back to the system at once.
            - name: MALLOC_MMAP_THRESHOLD_
              value: "131072"
            {{- range $variable, $value := .env }}
            - name: {{ $variable }}
              value: {{ $value | quote }}
            {{- end }}
          ports:
            - name: https
              containerPort: 8443
            - name: health
              containerPort: 9090
            {{- range .ports }}
            - name: {{ .name }}
              containerPort: {{ .port }}
            {{- end }}
          # Ten minutes to become ready (a database may have to recover first), then the pod is started anew.
          startupProbe:
            httpGet:
              path: /readyz
              port: health
            periodSeconds: 1
            timeoutSeconds: 3
            failureThreshold: 600
          livenessProbe:
            httpGet:
              path: /healthz
              port: health
            periodSeconds: 20
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet:
              path: /readyz
              port: health
            periodSeconds: 10
            timeoutSeconds: 3
            failureThreshold: 2
          resources:
            requests:
              cpu: 10m
              memory: {{ add 40 (div $heap 4) }}Mi
              ephemeral-storage: 16Mi
            limits:
              cpu: "2"
              memory: {{ add $heap (.buffers | default 160 | int) }}Mi
              ephemeral-storage: 256Mi
          securityContext:
            {{- include "region.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - name: tmp
              mountPath: /tmp
            {{- range $mounts }}
            - name: {{ .name }}
              mountPath: {{ .path }}
              readOnly: true
            {{- end }}
      volumes:
        - name: tmp
          emptyDir:
            sizeLimit: 128Mi
        {{- range $mounts }}
        - name: {{ .name }}
          {{- if .secret }}
          secret:
            secretName: {{ .secret }}
            defaultMode: 0440
          {{- else if .configMap }}
          configMap:
            name: {{ .configMap }}
          {{- else }}
          image:
            reference: {{ .image }}
            pullPolicy: {{ $root.Values.image.pullPolicy }}
          {{- end }}
            {{- with .items }}
            items:
              {{- range . }}
              - key: {{ .key }}
                path: {{ .path }}
              {{- end }}
            {{- end }}
        {{- end }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "region.labels" . | nindent 4 }}
spec:
  selector:
    {{- include "region.selector" . | nindent 4 }}
  ports:
    - name: https
      port: 443
      targetPort: https
    {{- range .ports }}
    - name: {{ .name }}
      port: {{ .port }}
      targetPort: {{ .name }}
    {{- end }}
---
{{ include "region.metricsService" . }}
{{- if gt $replicas 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "region.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "region.selector" . | nindent 6 }}
{{- end }}
{{- end }}
