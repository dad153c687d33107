import "reflect-metadata";
import { webcrypto } from "node:crypto";
import * as x509 from "@peculiar/x509";
import { describe, expect, it } from "vitest";
import { readCertificateRequest } from "./certificate-request.ts";
import { plan } from "./plan.ts";
import { type CertificateSigningRequest, isUndecided, KUBELET_SERVING, servingRequestOf } from "./serving.ts";
import { Site } from "./site.fixture.ts";

const keys = (await webcrypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, [
	"sign",
	"verify",
])) as webcrypto.CryptoKeyPair;
const kubelet = async (commonName: string, names: x509.JsonGeneralNames): Promise<string> => {
	const request = await x509.Pkcs10CertificateRequestGenerator.create({
		name: [{ O: ["system:nodes"] }, { CN: [commonName] }],
		keys,
		signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
		extensions: [new x509.SubjectAlternativeNameExtension(names)],
	});
	return Buffer.from(request.toString("pem")).toString("base64");
};
const names: x509.JsonGeneralNames = [
	{ type: "dns", value: "h2" },
	{ type: "ip", value: "10.0.0.2" },
];
const csr = (more: CertificateSigningRequest["spec"], status = {}): CertificateSigningRequest => ({
	metadata: { name: "csr-1" },
	spec: { signerName: KUBELET_SERVING, username: "system:node:h2", ...more },
	status,
});

describe("what a kubelet asks to serve as", () => {
	it("is read from its request", async () => {
		const request = csr({ request: await kubelet("system:node:h2", names) });
		expect(isUndecided(request)).toBe(true);
		expect(servingRequestOf(request, readCertificateRequest)).toEqual({
			name: "csr-1",
			node: "h2",
			names: ["h2", "10.0.0.2"],
		});
	});

	it("is nothing when a node asks for another, a person asks, or it is no request", async () => {
		const request = await kubelet("system:node:h1", names);
		expect(servingRequestOf(csr({ request }), readCertificateRequest)).toBeUndefined();
		const person = csr({ request: await kubelet("eve", names), username: "eve" });
		expect(servingRequestOf(person, readCertificateRequest)).toBeUndefined();
		expect(servingRequestOf(csr({ request: "eA==" }), readCertificateRequest)).toBeUndefined();
	});

	it("is left alone once it was decided about, and where another signer is asked", () => {
		expect(isUndecided(csr({}, { conditions: [{ type: "Denied", status: "True" }] }))).toBe(false);
		expect(isUndecided(csr({ signerName: "kubernetes.io/kube-apiserver-client-kubelet" }))).toBe(false);
	});
});

describe("the plan", () => {
	const spec = { version: "v1.36.3", controlPlane: { hosts: ["h1"] }, workers: [{ name: "w", hosts: ["h2"] }] };
	const planned = (node: string, asked: string[]) => {
		const { observed } = new Site(spec, ["h1", "h2"]).run(20);
		if (observed.workload === undefined) throw new Error("no workload");
		const servingRequests = [{ name: "csr-1", node, names: asked }];
		return plan({ ...observed, workload: { ...observed.workload, servingRequests } });
	};

	it("approves a host's own name and address", () => {
		const { actions } = planned("h2", ["h2", "10.0.0.2"]);
		expect(actions).toEqual([{ type: "approveServing", host: "h2", request: "csr-1" }]);
	});

	it.each([
		["another host's address", ["h2", "10.0.0.1"], /serve as 10\.0\.0\.1, .*kubectl certificate approve csr-1/],
		["another host's name", ["h1", "10.0.0.2"], /serve as h1,/],
		["nothing", [], /serve as nobody/],
	])("leaves %s to a person, and says so", (_what, asked, message) => {
		const { actions, status } = planned("h2", asked);
		expect(actions).toEqual([]);
		expect(status.members).toContainEqual(
			expect.objectContaining({ host: "h2", phase: "Ready", message: expect.stringMatching(message) }),
		);
	});

	it("has nothing to do with a node that is no member", () => {
		expect(planned("h9", ["h9"]).actions).toEqual([]);
	});
});
