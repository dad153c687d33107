import { X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { parse } from "yaml";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { makeDirectories, statOf, writeDurable } from "./durable.ts";
import { pathMemory, rememberPath, restorePath } from "./file.ts";
import type { Primitive } from "./primitive.ts";

const clientCertificateWant = z.object({
	name: z.string(),
	organization: z.string(),
	certificate: z.string().startsWith("/"),
	key: z.string().startsWith("/"),
	/** The CA that signs it, whose key must be on this host. */
	ca: z.string().startsWith("/"),
	/** Go duration. */
	validity: z.string().default("8760h"),
});

const clientCertificateMemory = z.object({ certificate: pathMemory, key: pathMemory });

/** A client certificate of the cluster, signed on the control plane by kubeadm and renewed when a third of its life is left. */
export const clientCertificate: Primitive<
	z.output<typeof clientCertificateWant>,
	z.output<typeof clientCertificateMemory>
> = {
	schema: clientCertificateWant,
	key: ({ certificate }) => certificate,
	async observe({ name, organization, certificate, key, ca }, { now }) {
		if (!(await statOf(certificate)) || !(await statOf(key))) return { ok: false, why: `${certificate} is missing` };
		try {
			const found = new X509Certificate(await readFile(certificate));
			const authority = new X509Certificate(await readFile(ca));
			const life = found.validToDate.getTime() - found.validFromDate.getTime();
			const why = !found.verify(authority.publicKey)
				? "was signed by another CA"
				: !found.subject.split("\n").includes(`CN=${name}`) || !found.subject.split("\n").includes(`O=${organization}`)
					? "has another subject"
					: found.validToDate.getTime() - now() < life / 3
						? "is due for renewal"
						: undefined;
			return why === undefined ? { ok: true } : { ok: false, why: `${certificate} ${why}` };
		} catch {
			return { ok: false, why: `${certificate} can't be read` };
		}
	},
	async remember({ certificate, key }, context) {
		return { certificate: await rememberPath(certificate, context), key: await rememberPath(key, context) };
	},
	async apply({ name, organization, certificate, key, validity }, { exec, signal }) {
		const { stdout } = await exec(
			"kubeadm",
			["kubeconfig", "user", `--client-name=${name}`, `--org=${organization}`, `--validity-period=${validity}`],
			{ signal },
		);
		const user = parse(stdout)?.users?.[0]?.user;
		const [certificateData, keyData] = [user?.["client-certificate-data"], user?.["client-key-data"]];
		if (typeof certificateData !== "string" || typeof keyData !== "string")
			throw new GroundplaneError("StepFailed", "kubeadm gave a kubeconfig without a client certificate", {
				next: "Compare the version of kubeadm on the host with the release bundle's.",
			});
		for (const path of [key, certificate]) await makeDirectories(dirname(path), 0o700);
		await writeDurable(key, Buffer.from(keyData, "base64"), 0o600);
		await writeDurable(certificate, Buffer.from(certificateData, "base64"), 0o644);
	},
	async undo({ certificate, key }) {
		await restorePath(key);
		await restorePath(certificate);
	},
};
