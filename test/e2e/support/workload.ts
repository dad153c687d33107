/**
 * A workload of what every cluster of ours has on its nodes anyway: the kube-proxy image brings Debian's perl, which
 * is a web server in one line, and hosts need to pull nothing.
 */
const serve = [
	"use IO::Socket::INET; $| = 1;",
	'my $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 20, ReuseAddr => 1) or die "$!";',
	'while (my $c = $s->accept) { my $l = <$c>; print "request $l"; my $b = "$ENV{POD_NAME} on $ENV{NODE_NAME}\\n";',
	'print $c "HTTP/1.0 200 OK\\r\\nContent-Length: " . length($b) . "\\r\\n\\r\\n$b"; close $c }',
].join(" ");

const fromField = (name: string, fieldPath: string) => ({ name, valueFrom: { fieldRef: { fieldPath } } });

/** A Deployment with one pod on each of `replicas` nodes, and a Service before it. */
export const webManifests = (version: string, replicas: number) => [
	{
		apiVersion: "apps/v1",
		kind: "Deployment",
		metadata: { name: "web", namespace: "default" },
		spec: {
			replicas,
			selector: { matchLabels: { app: "web" } },
			template: {
				metadata: { labels: { app: "web" } },
				spec: {
					terminationGracePeriodSeconds: 1,
					topologySpreadConstraints: [
						{
							maxSkew: 1,
							topologyKey: "kubernetes.io/hostname",
							whenUnsatisfiable: "DoNotSchedule",
							labelSelector: { matchLabels: { app: "web" } },
						},
					],
					containers: [
						{
							name: "web",
							image: `registry.k8s.io/kube-proxy:${version}`,
							imagePullPolicy: "Never",
							command: ["perl", "-e", serve],
							env: [fromField("POD_NAME", "metadata.name"), fromField("NODE_NAME", "spec.nodeName")],
							readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 },
						},
					],
				},
			},
		},
	},
	{
		apiVersion: "v1",
		kind: "Service",
		metadata: { name: "web", namespace: "default" },
		spec: { selector: { app: "web" }, ports: [{ port: 80, targetPort: 8080 }] },
	},
];

/** Arguments of `perl` that fetch a URL's body: argument 1 is the host, 2 the port. */
export const fetchScript =
	'use IO::Socket::INET; my $c = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1], Timeout => 5) or die "connect: $!\\n"; print $c "GET / HTTP/1.0\\r\\n\\r\\n"; my @l = <$c>; print $l[-1];';
