/**
 * Every error that crosses a module's edge: a code from one closed list, what happened, and what a person does next.
 *
 * The code is stable (people alert and script on it), so codes are added and never renamed. The first word names the layer.
 */
export const errorCodes = {
	// Input and configuration
	InvalidInput: 400,
	InvalidConfiguration: 500,
	// Identity
	Unauthenticated: 401,
	Forbidden: 403,
	// Things asked for
	NotFound: 404,
	AlreadyExists: 409,
	Conflict: 409,
	// Enrolment
	JoinTokenInvalid: 401,
	JoinTokenExpired: 401,
	JoinTokenUsedUp: 401,
	HostNameMismatch: 403,
	HostAlreadyEnrolled: 409,
	HostNotApproved: 403,
	ClockSkew: 401,
	CertificateInvalid: 401,
	CertificateRevoked: 401,
	// Desired state and bundles
	SignatureInvalid: 422,
	DesiredStateExpired: 422,
	DesiredStateStale: 422,
	DigestMismatch: 422,
	BundleNotFound: 404,
	// Tunnel
	HostNotConnected: 503,
	ServiceNotAllowed: 403,
	TunnelProtocolError: 502,
	TunnelClosed: 502,
	DeadlineExceeded: 504,
	Unreachable: 503,
	Overloaded: 503,
	// Work on a host
	PrerequisiteNotMet: 412,
	CommandFailed: 500,
	StepFailed: 500,
	StepTimeout: 504,
	AgentUpdateFailed: 500,
	// Things we stand on
	KubernetesUnavailable: 503,
	DatabaseUnavailable: 503,
	BusUnavailable: 503,
	HelmFailed: 500,
	Internal: 500,
} as const;

/** A code of the closed list; its value in {@link errorCodes} is the HTTP status that carries it. */
export type ErrorCode = keyof typeof errorCodes;

export interface ErrorDetails {
	/** What to do next, for the person who reads it. */
	readonly next: string;
	/** The error underneath. Kept for logs, never sent to a client. */
	readonly cause?: unknown;
	/** Facts that help (names, numbers). Never a secret. */
	readonly details?: Readonly<Record<string, unknown>>;
}

/** An error with a code, a message (what happened) and a next step (what to do). */
export class GroundplaneError extends Error {
	readonly code: ErrorCode;
	readonly next: string;
	readonly details: Readonly<Record<string, unknown>> | undefined;

	constructor(code: ErrorCode, message: string, { next, cause, details }: ErrorDetails) {
		super(message, cause === undefined ? undefined : { cause });
		this.name = "GroundplaneError";
		this.code = code;
		this.next = next;
		this.details = details;
	}

	/** The HTTP status that carries this error. */
	get status(): number {
		return errorCodes[this.code];
	}

	/** The body that a client sees: RFC 9457 problem details, with our code and next step. */
	toJSON(): { title: string; status: number; code: ErrorCode; detail: string; next: string } {
		return { title: this.code, status: this.status, code: this.code, detail: this.message, next: this.next };
	}
}

/**
 * The error that a body tells of, in its own words: problem details with a code of ours; undefined when it is anything else.
 * `details.retryAfterMs` is its hint when to come back, if it has one.
 */
export function problemOf(body: string): GroundplaneError | undefined {
	try {
		const { code, detail, next, retryAfterMs } = JSON.parse(body) as Record<string, unknown>;
		if (typeof code !== "string" || !Object.hasOwn(errorCodes, code)) return undefined;
		return new GroundplaneError(code as ErrorCode, String(detail), {
			next: String(next),
			...(typeof retryAfterMs === "number" && retryAfterMs >= 0 && { details: { retryAfterMs } }),
		});
	} catch {
		return undefined;
	}
}

/** Gives any thrown value a code: a {@link GroundplaneError} stays what it is, everything else becomes `Internal`. */
export function asGroundplaneError(error: unknown): GroundplaneError {
	if (error instanceof GroundplaneError) return error;
	const message = error instanceof Error ? error.message : String(error);
	return new GroundplaneError("Internal", message, {
		next: "This is a fault in Groundplane: look at the component's log and report it with the lines around it.",
		cause: error,
	});
}
