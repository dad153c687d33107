import "@patternfly/react-core/dist/styles/base.css";
import { Page } from "@patternfly/react-core";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

const root = document.getElementById("root");
if (root) {
	createRoot(root).render(
		<StrictMode>
			<Page>Groundplane</Page>
		</StrictMode>,
	);
}
