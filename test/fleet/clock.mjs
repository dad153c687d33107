/**
 * Loaded into a program by `--import`: SIGUSR2 sets its clock an hour ahead, the next one an hour back, the one after that as it was. Only
 * its clock: TLS, other programs and timers go by the machine's, as when somebody sets one machine's clock.
 */
const steps = [3_600_000, -3_600_000, 0];
let ahead = 0;
let signals = 0;
const Real = Date;
const now = () => Real.now() + ahead;

globalThis.Date = new Proxy(Real, {
	construct: (target, input, subject) => Reflect.construct(target, input.length === 0 ? [now()] : input, subject),
	apply: () => new Real(now()).toString(),
	get: (target, name) => (name === "now" ? now : Reflect.get(target, name)),
});
process.on("SIGUSR2", () => {
	ahead = steps[signals++ % steps.length];
});
