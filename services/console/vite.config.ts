import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `vite build services/console` writes services/console/dist; the artifacts service serves it with a policy that
// lets a page load nothing from anywhere else, so everything (fonts, styles) is part of the bundle.
export default defineConfig({
	plugins: [react()],
	build: {
		target: "es2023",
		modulePreload: { polyfill: false },
		reportCompressedSize: false,
		chunkSizeWarningLimit: 700,
	},
});
