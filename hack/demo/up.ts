import { join } from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import { run } from "../lib/exec.ts";
import { runProgram } from "../lib/program.ts";
import { Demo } from "./demo.ts";
import { onExistingCluster, onKind } from "./elsewhere.ts";

const root = process.env.GP_ROOT ?? process.cwd();
const started = Date.now();

interface Options {
	lab: string;
	hosts: number;
	provider: "lab" | "kind";
	kubeconfig?: string;
}

const command = new Command("hack/up")
	.description(
		"Makes the demo: a management server, a region, hosts behind a firewall, and a Kubernetes cluster on them.\nIt can be interrupted and run again: it goes on where it stopped.",
	)
	.option("--lab <name>", "name of the lab; several can stand side by side", process.env.GROUNDPLANE_LAB ?? "demo")
	.option("--hosts <n>", "hosts at the customer's site", wholeNumber, 3)
	.addOption(
		new Option("--provider <name>", "what the management cluster runs on").choices(["lab", "kind"]).default("lab"),
	)
	.option("--kubeconfig <file>", "use this existing cluster as the management cluster (no hosts are made)")
	.action(up);

async function up({ lab, hosts, provider, kubeconfig }: Options): Promise<void> {
	report("Building the release (hack/build)");
	await run(join(root, "hack", "build"), ["--newest"], { onLine: (line) => console.log(`         ${line}`) });
	if (kubeconfig !== undefined) return onExistingCluster(kubeconfig, report);
	if (provider === "kind") return onKind(lab, report);

	const demo = new Demo({ lab, report });
	report("Booting the management server and the site's hosts");
	await demo.machines(hosts);
	report("Installing the management server (gp server init)");
	await demo.managementServer();
	report("Making the region");
	await demo.makeRegion();
	await demo.signIn();
	const names = Array.from({ length: hosts }, (_, index) => `host-${index + 1}`);
	report("Enrolling the hosts");
	await demo.enroll(names);
	report("Making the cluster");
	await demo.makeCluster("demo", names);
	await demo.clusterKubeconfig("demo");
	report("Done");
	console.log(farewell(demo));
}

const farewell = (demo: Demo): string => `
The demo is running.

  hack/kubectl get regions,hosts,clusters -A        what the provider's operator sees
  hack/gp host list                                 what the customer's admin sees
  hack/gp cluster kubeconfig demo > demo.kubeconfig
  kubectl --kubeconfig demo.kubeconfig get nodes    what the customer's developers see, through the tunnel
  hack/lab exec host-1 -- journalctl -u gp-agent    what happens on a host

  Console   https://${demo.domain()}/
  Sign in   admin, with the password that this prints:
            hack/kubectl get secret auth-admin -n ${demo.namespace} -o jsonpath={.data.password} | base64 -d

  hack/down removes all of it.
`;

function report(line: string): void {
	const seconds = Math.round((Date.now() - started) / 1000);
	console.log(`[${String(Math.floor(seconds / 60)).padStart(2)}:${String(seconds % 60).padStart(2, "0")}]  ${line}`);
}

function wholeNumber(text: string): number {
	const value = Number(text);
	if (!Number.isInteger(value) || value < 1 || value > 50)
		throw new InvalidArgumentError("Give a whole number from 1 to 50.");
	return value;
}

await runProgram(command);
