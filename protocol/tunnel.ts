/** Where hosts open their tunnel, and what they ask for in the WebSocket handshake (RFC 6455 §1.9). */
export const TUNNEL_PATH = "/tunnel/v1";
export const TUNNEL_SUBPROTOCOL = "groundplane.tunnel.v1";
