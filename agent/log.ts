/** What the agent logs to: fields first, then the message, as pino has it. */
export interface Log {
	debug(fields: object, message?: string): void;
	info(fields: object, message?: string): void;
	warn(fields: object, message?: string): void;
	error(fields: object, message?: string): void;
}

/** Priorities of syslog, which journald reads from the start of a line (sd-daemon(3)). */
const levels = { debug: 7, info: 6, warn: 4, error: 3 } as const;

/**
 * Lines for people who read the journal: `message key=value …`. With journald behind it each line carries its priority.
 */
export function createLog({
	write = (line: string) => void process.stdout.write(line),
	level = "info",
	journal = process.env.JOURNAL_STREAM !== undefined,
}: {
	write?: (line: string) => void;
	level?: keyof typeof levels;
	journal?: boolean;
} = {}): Log {
	const at = (name: keyof typeof levels) => (fields: object, message?: string) => {
		if (levels[name] > levels[level]) return;
		const words = Object.entries(fields).flatMap(([key, value]) =>
			value === undefined ? [] : key === "err" ? errorWords(value) : [`${key}=${quote(value)}`],
		);
		const prefix = journal ? `<${levels[name]}>` : `${name.toUpperCase()} `;
		write(
			`${prefix}${[message, ...words]
				.filter((word) => word !== undefined)
				.join(" ")
				.replaceAll("\n", " ")}\n`,
		);
	};
	return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

function errorWords(error: unknown): string[] {
	if (!(error instanceof Error)) return [`error=${quote(error)}`];
	const { code, next } = error as { code?: unknown; next?: unknown };
	return [
		`error=${quote(error.message)}`,
		...(code === undefined ? [] : [`code=${quote(code)}`]),
		...(next === undefined ? [] : [`next=${quote(next)}`]),
		...(error.cause instanceof Error ? [`cause=${quote(error.cause.message)}`] : []),
	];
}

function quote(value: unknown): string {
	const text = typeof value === "string" ? value : JSON.stringify(value);
	return /^[\w.:/@+-]+$/.test(text) ? text : JSON.stringify(text);
}
