import "@patternfly/react-core/dist/styles/base.css";
import "./app/console.css";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app/app.tsx";
import { startTheme } from "./app/theme.ts";
import { Session } from "./auth/session.ts";

startTheme();
const session = new Session();
void session.start();

const root = document.getElementById("root");
if (root) {
	createRoot(root).render(
		<StrictMode>
			<App session={session} />
		</StrictMode>,
	);
}
