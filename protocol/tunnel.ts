/** Where hosts open their tunnel, and what they ask for in the WebSocket handshake (RFC 6455 §1.9). */
export const TUNNEL_PATH = "/tunnel/v1";
export const TUNNEL_SUBPROTOCOL = "groundplane.tunnel.v1";
/** Capability in a gateway's HELLO: it is one of several, and keeps spare tunnels. */
export const SPARE = "spare";
/**
 * Asks for a tunnel that is kept as the host's spare: nothing goes through it until the host opens its control stream on it, from when
 * on the tunnel is the host's. A subprotocol of its own, since a gateway that knows nothing of it must not take it for the host's tunnel.
 */
export const SPARE_SUBPROTOCOL = "groundplane.tunnel.v1.spare";
