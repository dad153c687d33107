/** How long a condition may take to come true that a test waits for, in milliseconds. Vitest's own second is over before a busy machine has had a turn. */
export const patience = { timeout: 20_000 };
