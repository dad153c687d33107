import { adoptedAccess } from "./adopted-access.ts";
import { adoptedNode } from "./adopted-node.ts";
import { balancer } from "./balancer.ts";
import { binary } from "./binary.ts";
import { clientCertificate } from "./client-certificate.ts";
import { command } from "./command.ts";
import { coreDns } from "./core-dns.ts";
import { directory } from "./directory.ts";
import { etcdMembers } from "./etcd-members.ts";
import { file } from "./file.ts";
import { image } from "./image.ts";
import { kubeadm } from "./kubeadm.ts";
import { manifest } from "./manifest.ts";
import { kernelModule } from "./module.ts";
import { preflight } from "./preflight.ts";
import type { Primitive } from "./primitive.ts";
import { residue } from "./residue.ts";
import { sysctl } from "./sysctl.ts";
import { unit } from "./unit.ts";

/** What a role pack can ask for (`use:` of a step). */
export const primitives: Readonly<Record<string, Primitive>> = {
	balancer,
	binary,
	command,
	directory,
	file,
	image,
	kubeadm,
	manifest,
	preflight,
	residue,
	sysctl,
	unit,
	"adopted-access": adoptedAccess,
	"adopted-node": adoptedNode,
	"client-certificate": clientCertificate,
	"core-dns": coreDns,
	"etcd-members": etcdMembers,
	"kernel-module": kernelModule,
} as unknown as Readonly<Record<string, Primitive>>;
