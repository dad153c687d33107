import { X509Certificate } from "node:crypto";
import { readFileSync, unwatchFile, watchFile } from "node:fs";
import { join } from "node:path";
import { GroundplaneError } from "../../protocol/errors.ts";

/** Certificate with its chain, key and CA, all PEM. */
export interface TlsMaterial {
	readonly cert: string;
	readonly key: string;
	readonly ca: string;
}

const POLL_MS = 10_000;

/**
 * `tls.crt`, `tls.key` and `ca.crt` of a mounted Secret, read again when they change (the kubelet swaps a symbolic link,
 * so they are polled rather than watched). A new version that can't be read leaves the old one in use.
 */
export class TlsFiles {
	readonly directory: string;
	#current: TlsMaterial;
	readonly #listeners = new Set<(material: TlsMaterial) => void>();

	/** @throws GroundplaneError InvalidConfiguration when a file is missing or is no certificate. */
	constructor(directory: string) {
		this.directory = directory;
		this.#current = this.#read();
	}

	get current(): TlsMaterial {
		return this.#current;
	}

	get caFile(): string {
		return join(this.directory, "ca.crt");
	}

	/** Roots that this service trusts. */
	get roots(): X509Certificate[] {
		return (this.#current.ca.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []).map(
			(pem) => new X509Certificate(pem),
		);
	}

	/** Calls `listener` with each new version. Returns the function that ends it. */
	onChange(listener: (material: TlsMaterial) => void): () => void {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	/** Starts looking for changes until `signal` aborts; `onError` hears of versions that can't be read. */
	watch(signal: AbortSignal, onError: (error: unknown) => void): void {
		const file = join(this.directory, "tls.crt");
		const changed = () => {
			try {
				this.reload();
			} catch (error) {
				onError(error);
			}
		};
		watchFile(file, { persistent: false, interval: POLL_MS }, changed);
		signal.addEventListener("abort", () => unwatchFile(file, changed), { once: true });
	}

	/** Reads the files again and tells the listeners. */
	reload(): void {
		const next = this.#read();
		const { cert, key, ca } = this.#current;
		if (next.cert === cert && next.key === key && next.ca === ca) return;
		this.#current = next;
		for (const listener of this.#listeners) listener(next);
	}

	#read(): TlsMaterial {
		try {
			const read = (name: string) => readFileSync(join(this.directory, name), "utf8");
			const material = { cert: read("tls.crt"), key: read("tls.key"), ca: read("ca.crt") };
			new X509Certificate(material.cert);
			new X509Certificate(material.ca);
			return material;
		} catch (cause) {
			throw new GroundplaneError("InvalidConfiguration", `no usable certificate in ${this.directory}`, {
				next: "Check that the Secret tls-SERVICE is mounted there with tls.crt, tls.key and ca.crt.",
				cause,
			});
		}
	}
}
