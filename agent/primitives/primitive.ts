import type { z } from "zod";
import type { ReleaseFile } from "../../protocol/release.ts";
import type { Exec } from "./exec.ts";

/** What a primitive may use. Everything it does to the host goes through here or through node:fs. */
export interface StepContext {
	readonly exec: Exec;
	/** Path of a verified local copy of a bundle's file. */
	readonly blob: (path: string) => Promise<string>;
	/** What the bundle says about one of its files. */
	readonly file: (path: string) => ReleaseFile;
	/** A directory of the engine for what must be put back later (mode 0700). */
	readonly backupDir: string;
	readonly signal: AbortSignal;
	readonly now: () => number;
	readonly log: (message: string) => void;
}

export interface Observation {
	readonly ok: boolean;
	/** Why it isn't, for people. */
	readonly why?: string;
	/** Facts that the role tells the plane. Never a secret. */
	readonly outputs?: Readonly<Record<string, string>>;
}

/**
 * One kind of thing that a role pack can ask of a host. `want` is what the pack says, `memory` is what has to be known to
 * undo it; it is read before the first change, kept in the journal, and holds no secret.
 */
export interface Primitive<Want = unknown, Memory = unknown> {
	readonly schema: z.ZodType<Want>;
	/** Names the thing on the host (a path, a unit). When it changes, the old one is undone first. */
	key(want: Want): string;
	/** Whether the host is as wanted. `applied` is the digest of the last `want` that was applied, if any. Changes nothing. */
	observe(want: Want, context: StepContext, applied: Applied): Promise<Observation>;
	/** What was there before. May refuse with PrerequisiteNotMet. Changes nothing on the host. */
	remember(want: Want, context: StepContext): Promise<Memory>;
	/** Makes it so. Idempotent: it may run again after a crash at any line of it. */
	apply(want: Want, context: StepContext, applied: Applied): Promise<void>;
	/** Puts back what was there. Idempotent too. */
	undo(memory: Memory, context: StepContext): Promise<void>;
}

export interface Applied {
	/** Digest of the `want` that was last applied to the end; undefined when that never happened. */
	readonly last: string | undefined;
	/** Digest of this `want`. */
	readonly now: string;
}
