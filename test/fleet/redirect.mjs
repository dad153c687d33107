/**
 * Loaded into the operator by `--import`: names of the management cluster's DNS do not resolve outside it, so the
 * gateway's forward proxy is dialled where `FLEET_PROXY` (host:port) says. Everything else is left alone.
 */
import { Socket } from "node:net";

const [host, port] = (process.env.FLEET_PROXY ?? "").split(":");
const connect = Socket.prototype.connect;
Socket.prototype.connect = function redirected(...input) {
	// Node hands over either its normalized [options, callback] or what the caller gave.
	const options = Array.isArray(input[0]) ? input[0][0] : input[0];
	if (typeof options === "object" && /^tunnel\..*\.svc\./.test(options?.host ?? ""))
		Object.assign(options, { host, port });
	return connect.apply(this, input);
};
