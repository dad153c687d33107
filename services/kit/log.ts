import { type DestinationStream, type Logger, pino } from "pino";
import { GroundplaneError } from "../../protocol/errors.ts";

export type Log = Logger;

const secretNames = ["authorization", "cookie", "password", "token", "secret", "privateKey", "key"];
const redacted = secretNames.flatMap((name) => [name, `*.${name}`, `*.*.${name}`]);

/** Chain of causes as text, so that a log line tells what really happened. */
function describe(error: unknown): Record<string, unknown> {
	if (!(error instanceof Error)) return { message: String(error) };
	const causes: string[] = [];
	for (let cause = error.cause; cause !== undefined && causes.length < 5; ) {
		causes.push(cause instanceof Error ? cause.message || cause.name : String(cause));
		cause = cause instanceof Error ? cause.cause : undefined;
	}
	return {
		...(error instanceof GroundplaneError
			? { code: error.code, next: error.next, ...(error.details && { details: error.details }) }
			: { type: error.name }),
		message: error.message,
		...(causes.length > 0 && { causes }),
		...((!(error instanceof GroundplaneError) || error.code === "Internal") && { stack: error.stack }),
	};
}

/**
 * JSON lines on standard output: `time` (RFC 3339), `level` (a word), `service`, `message`, `err` with our code.
 * Fields named like a secret are redacted down to the third level.
 */
export function createLog(service: string, level = "info", destination?: DestinationStream): Log {
	const options = {
		level,
		base: { service },
		messageKey: "message",
		timestamp: () => `,"time":"${new Date().toISOString()}"`,
		formatters: { level: (label: string) => ({ level: label }) },
		serializers: { err: describe, error: describe },
		redact: { paths: redacted, censor: "[redacted]" },
	};
	return destination ? pino(options, destination) : pino(options);
}
