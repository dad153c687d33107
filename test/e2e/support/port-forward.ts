import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { tool } from "../../../hack/builder/tools.ts";
import { demo } from "./demo.ts";

export interface Forward {
	/** The local port that leads to the target. */
	readonly port: number;
	stop(): void;
}

/** `kubectl port-forward` to a pod or service until it is stopped; resolves when the local port listens. */
export async function portForward(kubeconfig: string, args: readonly string[]): Promise<Forward> {
	const child = spawn(await tool("kubectl"), ["--kubeconfig", kubeconfig, "port-forward", ...args], {
		env: demo.environment,
		stdio: ["ignore", "pipe", "inherit"],
	});
	const port = await new Promise<number>((resolve, reject) => {
		createInterface({ input: child.stdout }).on("line", (line) => {
			const found = /127\.0\.0\.1:(\d+)/.exec(line)?.[1];
			if (found !== undefined) resolve(Number(found));
		});
		child.once("error", reject);
		child.once("exit", () => reject(new Error("port-forward ended")));
	});
	return { port, stop: () => void child.kill() };
}
