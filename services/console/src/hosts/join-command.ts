/**
 * The line that joins a machine. It pins the public key of the region's front door and gives curl --insecure: the machine does not
 * know the region's CA yet, and with a pinned key curl refuses any other server before it sends a byte.
 */
export const joinCommand = ({ origin, pin, token }: { origin: string; pin: string; token: string }): string =>
	`curl -fsSLk --pinnedpubkey '${pin}' -H 'Authorization: Bearer ${token}' ${origin}/artifacts/v1/join | sh`;

/** RFC 1123 label, as the API takes host names. */
export const isHostName = (name: string): boolean => /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(name);
