import { Button, Form, FormGroup, Modal, ModalBody, ModalFooter, ModalHeader, TextInput } from "@patternfly/react-core";
import { type FormEvent, type ReactNode, useId, useState } from "react";
import { ProblemAlert } from "./problem-alert.tsx";

/** Asks for the name before something is deleted that can't be brought back. */
export function ConfirmDelete({
	title,
	name,
	action,
	children,
	onConfirm,
	onClose,
}: {
	title: string;
	name: string;
	/** Text of the button. */
	action: string;
	/** What will happen. */
	children: ReactNode;
	onConfirm: () => Promise<unknown>;
	onClose: () => void;
}) {
	const id = useId();
	const [typed, setTyped] = useState("");
	const [isPending, setIsPending] = useState(false);
	const [error, setError] = useState<unknown>();
	const submit = async (event: FormEvent) => {
		event.preventDefault();
		if (typed !== name || isPending) return;
		setIsPending(true);
		setError(undefined);
		try {
			await onConfirm();
			onClose();
		} catch (failure) {
			setError(failure);
			setIsPending(false);
		}
	};
	return (
		<Modal variant="small" isOpen onClose={onClose} aria-labelledby={`${id}-title`} aria-describedby={`${id}-body`}>
			<ModalHeader title={title} titleIconVariant="warning" labelId={`${id}-title`} />
			<ModalBody id={`${id}-body`}>
				<div className="gp-stack">
					{children}
					{error !== undefined && <ProblemAlert title={`${action} did not work`} error={error} />}
					<Form id={`${id}-form`} onSubmit={submit}>
						<FormGroup
							label={
								<>
									Type <strong>{name}</strong> to confirm
								</>
							}
							fieldId={`${id}-name`}
						>
							<TextInput
								id={`${id}-name`}
								value={typed}
								onChange={(_event, value) => setTyped(value)}
								autoComplete="off"
								spellCheck={false}
								autoFocus
							/>
						</FormGroup>
					</Form>
				</div>
			</ModalBody>
			<ModalFooter>
				<Button type="submit" form={`${id}-form`} variant="danger" isDisabled={typed !== name} isLoading={isPending}>
					{action}
				</Button>
				<Button variant="link" onClick={onClose}>
					Cancel
				</Button>
			</ModalFooter>
		</Modal>
	);
}
