import { z } from "zod";
import { durationMs } from "../../protocol/duration.ts";
import { GroundplaneError } from "../../protocol/errors.ts";

/** Schema of a duration in the environment; its output is milliseconds. */
export const durationVariable = z
	.string()
	.regex(/^(?=\d)(\d+h)?(\d+m)?(\d+s)?$/, "must be a duration like 90s, 15m or 12h")
	.transform(durationMs);

const port = z.coerce.number().int().min(0).max(65535);

/** What every service of a region takes from the environment. */
export const commonConfig = {
	region: z.string().min(1),
	domain: z.string().min(1),
	namespace: z.string().min(1),
	logLevel: z.enum(["debug", "info", "warn", "error"]).default("info"),
	tlsDir: z.string().default("/etc/groundplane/tls"),
	port: port.default(8443),
	healthPort: port.default(9090),
	issuer: z.url(),
	audience: z.url(),
	jwksUrl: z.url().default("https://auth/auth/jwks"),
};

/** What a service with a database takes besides. The password comes from a file, never from the environment. */
export const databaseConfig = {
	databaseUrl: z.url({ protocol: /^postgres(ql)?$/ }),
	databasePasswordFile: z.string().default("/etc/groundplane/database/password"),
};

/** What a service on the bus takes besides. */
export const busConfig = {
	natsUrl: z.string().default("tls://nats:4222"),
	natsUser: z.string().min(1),
	natsPasswordFile: z.string().default("/etc/groundplane/nats/password"),
};

export type Environment = Readonly<Record<string, string | undefined>>;
export type ConfigOf<Shape extends z.ZodRawShape> = z.output<z.ZodObject<Shape & typeof commonConfig>>;

const variableOf = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase();

/**
 * Reads configuration from the environment: `databaseUrl` comes from `DATABASE_URL`. Namespace, issuer and audience
 * follow from region and domain unless they are given.
 *
 * @throws GroundplaneError InvalidConfiguration that lists every problem at once.
 */
export function loadConfig<Shape extends z.ZodRawShape>(shape: Shape, environment: Environment): ConfigOf<Shape> {
	const { REGION: region, DOMAIN: domain } = environment;
	const derived: Environment = {
		NAMESPACE: region && `region-${region}`,
		ISSUER: domain && `https://${domain}/auth`,
		AUDIENCE: domain && `https://${domain}/api`,
	};
	const schema = z.object({ ...commonConfig, ...shape });
	const input = Object.fromEntries(
		Object.keys(schema.shape).map((key) => {
			const variable = variableOf(key);
			return [key, environment[variable] || derived[variable] || undefined];
		}),
	);
	const result = schema.safeParse(input);
	if (result.success) return result.data as ConfigOf<Shape>;
	const problems = result.error.issues.map(({ path, message }) => {
		const key = String(path[0]);
		return `${variableOf(key)}: ${input[key] === undefined ? "is not set" : message}`;
	});
	throw new GroundplaneError("InvalidConfiguration", problems.join("; "), {
		next: "Correct these environment variables of the container; the region's chart sets them.",
		details: { problems },
	});
}
