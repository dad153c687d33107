import type { Host } from "../../crds/host.ts";
import type { KubeObject, Resource } from "../kube/resources.ts";
import { type Known, outputsOf } from "./members.ts";
import type { Action, ServingRequest } from "./state.ts";

/** The signer of what kubelets serve with (kubernetes.io/docs, "Kubernetes signers"). Nothing in Kubernetes approves its requests. */
export const KUBELET_SERVING = "kubernetes.io/kubelet-serving";

/** `certificates.k8s.io/v1` as far as it matters here. */
export interface CertificateSigningRequest extends KubeObject {
	spec?: {
		signerName?: string;
		/** PEM, in base64. */
		request?: string;
		/** Who asked, as the API server knows him. */
		username?: string;
	};
	status?: { conditions?: { type: string; status: string; reason?: string; message?: string }[] };
}

export const certificateSigningRequests: Resource<CertificateSigningRequest> = {
	group: "certificates.k8s.io",
	version: "v1",
	plural: "certificatesigningrequests",
	kind: "CertificateSigningRequest",
	namespaced: false,
};

/** Whether a kubelet asks, and nobody has decided about it yet. */
export const isUndecided = ({ spec, status }: CertificateSigningRequest): boolean =>
	spec?.signerName === KUBELET_SERVING && (status?.conditions ?? []).length === 0;

/** What a kubelet asks for; undefined when it is no request, or not of a node for itself. */
export function servingRequestOf(
	{ metadata, spec }: CertificateSigningRequest,
	read: (pem: string) => { commonName: string; names: string[] },
): ServingRequest | undefined {
	const node = /^system:node:(.+)$/.exec(spec?.username ?? "")?.[1];
	if (node === undefined) return undefined;
	try {
		const { commonName, names } = read(Buffer.from(spec?.request ?? "", "base64").toString());
		return commonName === spec?.username ? { name: metadata.name, node, names } : undefined;
	} catch {
		// What is no request can't be signed either.
		return undefined;
	}
}

/**
 * Approves what the kubelets of members ask to serve as: their own name, and addresses of the host that its agent told over
 * the tunnel. A node's word alone is not enough: it could ask for another one's address. What is not approved is told, by host.
 */
export function planServing(
	known: readonly Known[],
	requests: readonly ServingRequest[],
): { readonly actions: readonly Action[]; readonly refused: ReadonlyMap<string, string> } {
	const actions: Action[] = [];
	const refused = new Map<string, string>();
	for (const { name, node, names } of requests) {
		const host = known.find(({ member, begun }) => begun && member.host === node)?.host;
		if (host === undefined) continue;
		const foreign = names.filter((each) => !ownNames(host).includes(each));
		if (foreign.length === 0 && names.length > 0) actions.push({ type: "approveServing", host: node, request: name });
		else
			refused.set(
				node,
				`Its kubelet asks to serve as ${foreign.join(", ") || "nobody"}, which is not this host: logs and exec don't work there. If it is right: kubectl certificate approve ${name}`,
			);
	}
	return { actions, refused };
}

const ownNames = (host: Host): (string | undefined)[] => [
	host.metadata.name,
	host.status?.facts?.primaryAddress,
	outputsOf(host)?.nodeAddress,
];
