import type { Duplex } from "node:stream";
import { type IncomingStream, Session } from "../../../protocol/mux.ts";

/** What an end of the soak says of itself. */
export interface Account {
	/** Streams that were open at one time or another, those that have ended, and those that ended more than once. */
	opened: number;
	ended: number;
	twice: number;
	/** Sessions that are open, and the streams that they count themselves. */
	sessions: number;
	streams: number;
}

/** Counts every stream of every session of this process, whichever end opened it. To be kept before the first session begins. */
export function keepLedger(): () => Account {
	const sessions = new Set<Session>();
	const count = { opened: 0, ended: 0, twice: 0 };
	const follow = <Stream extends Duplex>(stream: Stream): Stream => {
		count.opened++;
		let times = stream.closed ? 1 : 0;
		count.ended += times;
		stream.on("close", () => {
			if (times++ === 0) count.ended++;
			else count.twice++;
		});
		return stream;
	};
	const meet = (session: Session) => {
		if (sessions.has(session)) return;
		sessions.add(session);
		void session.closed.then(() => sessions.delete(session));
	};

	const { open, emit } = Session.prototype;
	Session.prototype.open = async function (this: Session, ...args) {
		meet(this);
		return follow(await open.apply(this, args));
	};
	Session.prototype.emit = function (this: Session, name: string, ...args: unknown[]) {
		meet(this);
		if (name === "stream") {
			const incoming = args[0] as IncomingStream;
			args[0] = {
				service: incoming.service,
				lane: incoming.lane,
				accept: () => follow(incoming.accept()),
				refuse: (...why: Parameters<IncomingStream["refuse"]>) => incoming.refuse(...why),
			};
		}
		return (emit as (name: string, ...args: unknown[]) => boolean).call(this, name, ...args);
	} as Session["emit"];

	return () => {
		const streams = [...sessions].reduce((sum, session) => sum + session.stats().streams, 0);
		return { ...count, sessions: sessions.size, streams };
	};
}
