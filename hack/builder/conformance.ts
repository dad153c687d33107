import { join } from "node:path";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type GoProgram, goProgram, moduleFolder } from "./go.ts";
import { type Image, imageArchive } from "./images.ts";
import { etcdImage } from "./kubernetes.ts";
import { kubernetesProgram, minors } from "./programs.ts";
import { run } from "./run.ts";

const newest = minors[0];
const kubernetes = "k8s.io/kubernetes";
const architecture = process.arch === "arm64" ? "arm64" : "amd64";
const archive = `https://dl.k8s.io/${newest.kubernetes}/kubernetes-test-linux-${architecture}.tar.gz`;
const upstream = (name: string) => ({
	url: archive,
	checksums: `${archive}.sha256`,
	member: `kubernetes/test/bin/${name}`,
});
const module = `conformance-${newest.kubernetes.slice(1).split(".").slice(0, 2).join(".")}`;

/** Kubernetes' own end-to-end tests, of which those for conformance are a part. */
const suite: GoProgram = {
	module,
	package: `${kubernetes}/test/e2e`,
	name: "e2e.test",
	test: true,
	set: kubernetesProgram(newest, "kubelet").set ?? {},
	upstream: upstream("e2e.test"),
};
const ginkgo: GoProgram = { module, package: "github.com/onsi/ginkgo/v2/ginkgo", upstream: upstream("ginkgo") };
const agnhost: GoProgram = { module, package: `${kubernetes}/test/images/agnhost` };
const nonewprivs: GoProgram = { module, package: `${kubernetes}/test/images/nonewprivs` };
const sampleApiServer: GoProgram = { module, package: "k8s.io/sample-apiserver" };

/** What Kubernetes' conformance tests need of a machine and of the cluster that they are about. */
export interface ConformanceKit {
	/** The tests themselves. */
	readonly suite: string;
	/** What runs them, several at a time. */
	readonly ginkgo: string;
	/** Archives of the images that they start, for each node. */
	readonly images: readonly string[];
}

/**
 * Makes the tests and their images, without any registry: agnhost and the example of an API server from Kubernetes' own
 * sources, the others of Debian's packages, all under the names that the tests ask for (test/utils/image/manifest.go).
 */
export async function conformanceKit(): Promise<ConformanceKit> {
	const sources = await moduleFolder(suite, kubernetes);
	const testImage = (folder: string, name: string, more: Partial<Image> = {}): Image => ({
		folder: `conformance/${folder}`,
		reference: `registry.k8s.io/e2e-test-images/${name}`,
		...more,
	});
	const porter = join(sources, "test/images/agnhost/porter");
	const files = {
		agnhost: await goProgram(agnhost),
		"localhost.crt": join(porter, "localhost.crt"),
		"localhost.key": join(porter, "localhost.key"),
	};
	const base = testImage("agnhost", "agnhost:2.63.0", { files });
	const images = [
		base,
		// What tests change from and to when they roll something out; what is in it is of one version.
		testImage("agnhost", "agnhost:2.55", { files }),
		testImage("busybox", "busybox:1.37.0-1"),
		testImage("nginx", "nginx:1.15-4"),
		testImage("nginx", "nginx:1.27-0"),
		testImage("dns", "glibc-dns-testing:2.0.0"),
		testImage("nautilus", "nautilus:1.8", {
			from: base,
			files: { html: join(sources, "test/images/nautilus/html") },
		}),
		testImage("nonewprivs", "nonewprivs:1.4", { files: { nonewprivs: await goProgram(nonewprivs) } }),
		testImage("sample-apiserver", "sample-apiserver:1.29.2", {
			files: { "sample-apiserver": await goProgram(sampleApiServer) },
		}),
		await etcdImage(newest),
	];
	const tests = await goProgram(suite);
	await checkReferences(tests, images);
	const archives: string[] = [];
	for (const image of images) archives.push(await imageArchive(image));
	return { suite: tests, ginkgo: await goProgram(ginkgo), images: archives };
}

/** The tests know which images they ask for. */
async function checkReferences(tests: string, images: readonly Image[]): Promise<void> {
	const listed = (await run(tests, ["--list-images"])).split("\n");
	const others = images.filter(({ reference }) => !listed.includes(reference)).map(({ reference }) => reference);
	if (others.length === 0) return;
	throw new GroundplaneError("Conflict", `The tests of ${newest.kubernetes} do not ask for ${others.join(", ")}`, {
		next: `Correct the list in hack/builder/conformance.ts by what they do ask for:\n${listed.join("\n")}`,
	});
}
