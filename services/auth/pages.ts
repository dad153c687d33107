import { createHash } from "node:crypto";

/** Text made safe for HTML, in element content and in quoted attributes. */
export const escapeHtml = (text: string): string =>
	text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const style = `
:root{color-scheme:light dark;font-family:"Red Hat Text",RedHatText,system-ui,sans-serif}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:light-dark(#f2f2f2,#151515);color:light-dark(#151515,#fff)}
main{width:min(22rem,90vw);padding:2rem;border-radius:16px;background:light-dark(#fff,#292929)}
h1{font-size:1.4rem;margin:0 0 .25rem}
p{margin:.5rem 0 1rem;line-height:1.5}
label{display:block;font-size:.9rem;margin:1rem 0 .25rem}
input{box-sizing:border-box;width:100%;padding:.5rem .75rem;font:inherit;border:1px solid light-dark(#a3a3a3,#707070);border-radius:6px;background:transparent;color:inherit}
button{width:100%;margin-top:1.5rem;padding:.6rem;font:inherit;border:0;border-radius:999px;background:#06c;color:#fff;cursor:pointer}
button.plain{margin-top:.5rem;background:transparent;color:light-dark(#06c,#92c5f9)}
:focus-visible{outline:2px solid light-dark(#06c,#92c5f9);outline-offset:2px}
.error{padding:.6rem .75rem;border-radius:6px;background:light-dark(#fbeae5,#3c1a12)}
code{font-size:1.3rem;letter-spacing:.1em}`;

const styleHash = `'sha256-${createHash("sha256").update(style).digest("base64")}'`;

/** Headers of every page: no script at all, no framing, and forms that lead only here and back to the client. */
export const pageHeaders = (formTargets = ""): Record<string, string> => ({
	"content-security-policy": `default-src 'none'; style-src ${styleHash}; form-action 'self' ${formTargets}; frame-ancestors 'none'; base-uri 'none'`,
	"content-type": "text/html; charset=utf-8",
	"cache-control": "no-store",
	"referrer-policy": "no-referrer",
	"x-content-type-options": "nosniff",
	"x-frame-options": "DENY",
	"strict-transport-security": "max-age=31536000",
});

/** A whole page; `content` is HTML. */
export const page = (title: string, content: string): string => `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${escapeHtml(title)} · Groundplane</title><style>${style}</style></head>
<body><main>
<h1>${escapeHtml(title)}</h1>
${content}
</main></body>
</html>
`;

const alert = (message: string | undefined) =>
	message ? `<p class="error" role="alert">${escapeHtml(message)}</p>` : "";

export const signInPage = (options: {
	region: string;
	client: string;
	action: string;
	name?: string;
	error?: string;
}): string =>
	page(
		"Sign in",
		`<p>Region <strong>${escapeHtml(options.region)}</strong>, to continue to ${escapeHtml(options.client)}.</p>
${alert(options.error)}
<form method="post" action="${escapeHtml(options.action)}">
<label for="username">User name</label>
<input id="username" name="username" autocomplete="username" autocapitalize="none" spellcheck="false" required${options.name ? ` value="${escapeHtml(options.name)}"` : " autofocus"}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required${options.name ? " autofocus" : ""}>
<button type="submit">Sign in</button>
</form>`,
	);

/** Asked of who is signed in already: without it any program on the person's machine could sign in unseen (RFC 8252 section 8.6). */
export const confirmPage = (options: { region: string; client: string; action: string }): string =>
	page(
		"Continue?",
		`<p>Sign in to region <strong>${escapeHtml(options.region)}</strong> with ${escapeHtml(options.client)}? If you did not just start that, close this page.</p>
<form method="post" action="${escapeHtml(options.action)}"><button type="submit" autofocus>Continue</button></form>`,
	);

/** `form` is the provider's own form without a label or button; its id is `op.deviceInputForm`. */
export const deviceCodePage = (form: string, error?: string): string =>
	page(
		"Connect a device",
		`<p>Enter the code that the device shows.</p>${alert(error)}${form
			.replace(/ onfocus="[^"]*"/, "")
			.replace(
				'name="user_code"',
				'name="user_code" aria-label="Code"',
			)}<button type="submit" form="op.deviceInputForm">Continue</button>`,
	);

export const deviceConfirmPage = (options: { form: string; client: string; code: string; address: string }): string =>
	page(
		"Connect a device",
		`<p>${escapeHtml(options.client)} at ${escapeHtml(options.address)} asks to act as you. Does it show this code?</p>
<p><code>${escapeHtml(options.code)}</code></p>
${options.form}
<button type="submit" form="op.deviceConfirmForm" autofocus>Yes, continue</button>
<button class="plain" type="submit" form="op.deviceConfirmForm" name="abort" value="yes">No, refuse it</button>`,
	);

export const signOutPage = (form: string): string =>
	page(
		"Sign out?",
		`${form}
<button type="submit" form="op.logoutForm" name="logout" value="yes" autofocus>Sign out</button>
<button class="plain" type="submit" form="op.logoutForm">Stay signed in</button>`,
	);

export const messagePage = (title: string, message: string): string => page(title, `<p>${escapeHtml(message)}</p>`);
