/** Where volumes of the management server's own node live. */
export const VOLUMES = "/var/lib/groundplane/volumes";
const namespace = "groundplane-storage";
const name = "local-path-provisioner";
const labels = { "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "groundplane" };

/**
 * Volumes on the one node: rancher's local-path-provisioner with a default StorageClass `local`.
 *
 * @param image The provisioner.
 * @param helper An image with sh, mkdir and rm, which makes and removes the directories.
 */
export function storageObjects(image: string, helper: string): object[] {
	const meta = { name, namespace, labels };
	const script = (command: string) => `#!/bin/sh\nset -eu\n${command}\n`;
	return [
		{
			apiVersion: "v1",
			kind: "Namespace",
			metadata: { name: namespace, labels: { ...labels, "pod-security.kubernetes.io/enforce": "privileged" } },
		},
		{ apiVersion: "v1", kind: "ServiceAccount", metadata: meta },
		{
			apiVersion: "rbac.authorization.k8s.io/v1",
			kind: "ClusterRole",
			metadata: { name: `groundplane:${name}`, labels },
			rules: [
				{
					apiGroups: [""],
					resources: ["nodes", "persistentvolumeclaims", "configmaps", "pods", "pods/log"],
					verbs: ["get", "list", "watch"],
				},
				{
					apiGroups: [""],
					resources: ["persistentvolumes"],
					verbs: ["get", "list", "watch", "create", "patch", "update", "delete"],
				},
				{ apiGroups: [""], resources: ["events"], verbs: ["create", "patch"] },
				{ apiGroups: ["storage.k8s.io"], resources: ["storageclasses"], verbs: ["get", "list", "watch"] },
			],
		},
		{
			apiVersion: "rbac.authorization.k8s.io/v1",
			kind: "ClusterRoleBinding",
			metadata: { name: `groundplane:${name}`, labels },
			roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: `groundplane:${name}` },
			subjects: [{ kind: "ServiceAccount", name, namespace }],
		},
		{
			apiVersion: "rbac.authorization.k8s.io/v1",
			kind: "Role",
			metadata: meta,
			rules: [
				{
					apiGroups: [""],
					resources: ["pods"],
					verbs: ["get", "list", "watch", "create", "patch", "update", "delete"],
				},
			],
		},
		{
			apiVersion: "rbac.authorization.k8s.io/v1",
			kind: "RoleBinding",
			metadata: meta,
			roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name },
			subjects: [{ kind: "ServiceAccount", name, namespace }],
		},
		{
			apiVersion: "storage.k8s.io/v1",
			kind: "StorageClass",
			metadata: {
				name: "local",
				labels,
				annotations: { "storageclass.kubernetes.io/is-default-class": "true", defaultVolumeType: "local" },
			},
			provisioner: "rancher.io/local-path",
			volumeBindingMode: "WaitForFirstConsumer",
			reclaimPolicy: "Delete",
		},
		{
			apiVersion: "v1",
			kind: "ConfigMap",
			metadata: meta,
			data: {
				"config.json": JSON.stringify({
					nodePathMap: [{ node: "DEFAULT_PATH_FOR_NON_LISTED_NODES", paths: [VOLUMES] }],
				}),
				setup: script('mkdir -m 0777 -p "$VOL_DIR"'),
				teardown: script('rm -rf "$VOL_DIR"'),
				"helperPod.yaml": JSON.stringify({
					apiVersion: "v1",
					kind: "Pod",
					metadata: { name: "helper-pod" },
					spec: {
						priorityClassName: "system-node-critical",
						tolerations: [{ operator: "Exists" }],
						containers: [
							{ name: "helper-pod", image: helper, imagePullPolicy: "IfNotPresent", securityContext: { runAsUser: 0 } },
						],
					},
				}),
			},
		},
		{
			apiVersion: "apps/v1",
			kind: "Deployment",
			metadata: meta,
			spec: {
				replicas: 1,
				strategy: { type: "Recreate" },
				selector: { matchLabels: { "app.kubernetes.io/name": name } },
				template: {
					metadata: { labels },
					spec: {
						serviceAccountName: name,
						priorityClassName: "system-cluster-critical",
						tolerations: [{ key: "node-role.kubernetes.io/control-plane", operator: "Exists" }],
						securityContext: { runAsNonRoot: true, runAsUser: 65532, seccompProfile: { type: "RuntimeDefault" } },
						containers: [
							{
								name,
								image,
								imagePullPolicy: "IfNotPresent",
								command: [
									name,
									"start",
									"--config=/etc/config/config.json",
									`--configmap-name=${name}`,
									`--service-account-name=${name}`,
								],
								env: [{ name: "POD_NAMESPACE", valueFrom: { fieldRef: { fieldPath: "metadata.namespace" } } }],
								resources: { requests: { cpu: "10m", memory: "24Mi" }, limits: { memory: "96Mi" } },
								securityContext: {
									allowPrivilegeEscalation: false,
									readOnlyRootFilesystem: true,
									capabilities: { drop: ["ALL"] },
								},
								volumeMounts: [{ name: "config", mountPath: "/etc/config" }],
							},
						],
						volumes: [{ name: "config", configMap: { name } }],
					},
				},
			},
		},
	];
}
