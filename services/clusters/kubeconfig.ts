/** Path under which a cluster's API server is reached through the region. */
export const proxyPath = (cluster: string) => `/k8s/clusters/${cluster}`;

/**
 * A kubeconfig for a cluster, without any secret: `gp cluster credential` supplies the access token when kubectl asks for it
 * (client-go credential plugin). All values are DNS names or base64, so none needs quoting.
 */
export function kubeconfig({
	region,
	domain,
	cluster,
	ca,
}: {
	region: string;
	domain: string;
	cluster: string;
	ca: string;
}): string {
	const name = `${cluster}.${region}`;
	return `apiVersion: v1
kind: Config
current-context: ${name}
clusters:
  - name: ${name}
    cluster:
      server: https://${domain}${proxyPath(cluster)}
      certificate-authority-data: ${Buffer.from(ca).toString("base64")}
contexts:
  - name: ${name}
    context:
      cluster: ${name}
      user: groundplane-${domain}
users:
  - name: groundplane-${domain}
    user:
      exec:
        apiVersion: client.authentication.k8s.io/v1
        command: gp
        args: [cluster, credential, --region, ${domain}]
        interactiveMode: IfAvailable
        provideClusterInfo: false
        installHint: Install gp and sign in to the region with gp login ${domain}.
`;
}
