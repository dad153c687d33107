export type Theme = "light" | "dark" | "system";

const KEY = "groundplane.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export function storedTheme(): Theme {
	const stored = localStorage.getItem(KEY);
	return stored === "light" || stored === "dark" ? stored : "system";
}

/** Shows the theme and remembers it; `system` follows the machine, now and when it changes. */
export function setTheme(theme: Theme): void {
	localStorage.setItem(KEY, theme);
	show();
}

/** Shows what is stored, from now on. */
export function startTheme(): void {
	dark.addEventListener("change", show);
	show();
}

function show(): void {
	const theme = storedTheme();
	const isDark = theme === "dark" || (theme === "system" && dark.matches);
	document.documentElement.classList.toggle("pf-v6-theme-dark", isDark);
	document.documentElement.style.colorScheme = isDark ? "dark" : "light";
}
