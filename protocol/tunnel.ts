/** Where hosts open their tunnel, and what they ask for in the WebSocket handshake (RFC 6455 §1.9). */
export const TUNNEL_PATH = "/tunnel/v1";
export const TUNNEL_SUBPROTOCOL = "groundplane.tunnel.v1";
/**
 * Capability in HELLO. A gateway that has it is one of several, and keeps spare tunnels; a host that has it asks for this tunnel to be
 * kept as its spare: nothing goes through it until the host opens its control stream on it, from when on the tunnel is the host's.
 */
export const SPARE = "spare";
