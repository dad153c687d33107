import { Alert, AlertActionCloseButton, AlertGroup } from "@patternfly/react-core";
import { createContext, type ReactNode, useCallback, useContext, useState } from "react";
import { ProblemText } from "../ui/problem-alert.tsx";

interface Toast {
	readonly key: number;
	readonly title: string;
	readonly error?: unknown;
}

interface Tell {
	/** Something was done. */
	done: (title: string) => void;
	/** Something was not. */
	failed: (title: string, error: unknown) => void;
}

const ToastContext = createContext<Tell | undefined>(undefined);

export function useToasts(): Tell {
	const tell = useContext(ToastContext);
	if (!tell) throw new Error("used outside of Toasts");
	return tell;
}

let count = 0;

export function Toasts({ children }: { children: ReactNode }) {
	const [toasts, setToasts] = useState<readonly Toast[]>([]);
	const add = useCallback((toast: Omit<Toast, "key">) => setToasts((all) => [...all, { key: ++count, ...toast }]), []);
	const remove = (key: number) => setToasts((all) => all.filter((toast) => toast.key !== key));
	const [tell] = useState<Tell>(() => ({
		done: (title) => add({ title }),
		failed: (title, error) => add({ title, error }),
	}));
	return (
		<ToastContext value={tell}>
			{children}
			<AlertGroup isToast isLiveRegion hasAnimations>
				{toasts.map(({ key, title, error }) => (
					<Alert
						key={key}
						title={title}
						variant={error === undefined ? "success" : "danger"}
						// What went wrong stays until it was read.
						timeout={error === undefined}
						onTimeout={() => remove(key)}
						actionClose={<AlertActionCloseButton onClose={() => remove(key)} />}
					>
						{error !== undefined && <ProblemText error={error} />}
					</Alert>
				))}
			</AlertGroup>
		</ToastContext>
	);
}
