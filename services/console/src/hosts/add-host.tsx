import {
	Button,
	Form,
	FormGroup,
	FormHelperText,
	FormSelect,
	FormSelectOption,
	HelperText,
	HelperTextItem,
	Modal,
	ModalBody,
	ModalFooter,
	ModalHeader,
	NumberInput,
	Radio,
	Spinner,
	Switch,
	TextInput,
	Tooltip,
} from "@patternfly/react-core";
import CopyIcon from "@patternfly/react-icons/dist/esm/icons/copy-icon";
import { useMutation } from "@tanstack/react-query";
import { type FormEvent, useId, useState } from "react";
import { Link } from "react-router";
import type { JoinTokenRequest } from "../api/types.ts";
import { useConsole, useHosts, useMayOperate } from "../app/context.ts";
import { NEEDS_OPERATOR } from "../auth/permissions.ts";
import { hostPhase } from "../live/derive.ts";
import { ProblemAlert } from "../ui/problem-alert.tsx";
import { StateLabel } from "../ui/state-label.tsx";
import { dateAndTime, plural } from "../ui/words.ts";
import { isHostName, joinCommand } from "./join-command.ts";

export function AddHostButton() {
	const [isOpen, setIsOpen] = useState(false);
	const may = useMayOperate();
	const button = (
		<Button onClick={() => setIsOpen(true)} isAriaDisabled={!may}>
			Add host
		</Button>
	);
	return (
		<>
			{may ? button : <Tooltip content={NEEDS_OPERATOR}>{button}</Tooltip>}
			{isOpen && <AddHost onClose={() => setIsOpen(false)} />}
		</>
	);
}

const lifetimes = [
	["1h", "1 hour"],
	["8h", "8 hours"],
	["24h", "1 day"],
	["168h", "7 days"],
] as const;

function AddHost({ onClose }: { onClose: () => void }) {
	const id = useId();
	const { api } = useConsole();
	const [isNamed, setIsNamed] = useState(false);
	const [name, setName] = useState("");
	const [uses, setUses] = useState(1);
	const [lifetime, setLifetime] = useState("1h");
	const [approve, setApprove] = useState(true);
	const make = useMutation({
		mutationFn: async (request: JoinTokenRequest) => {
			const [pin, token] = await Promise.all([api.pin(), api.createJoinToken(request)]);
			return { command: joinCommand({ origin: location.origin, pin, token: token.token }), expiresAt: token.expiresAt };
		},
	});
	const isValid = isNamed ? isHostName(name) : uses >= 1 && uses <= 1000;
	const submit = (event: FormEvent) => {
		event.preventDefault();
		if (isValid) make.mutate({ uses: isNamed ? 1 : uses, lifetime, approve, ...(isNamed && { hostName: name }) });
	};
	return (
		<Modal variant="medium" isOpen onClose={onClose} aria-labelledby={`${id}-title`} aria-describedby={`${id}-body`}>
			<ModalHeader
				title="Add host"
				labelId={`${id}-title`}
				description="A machine joins by one command. It dials out to the region on port 443; nothing has to be opened towards it."
			/>
			<ModalBody id={`${id}-body`}>
				{make.data ? (
					<JoinCommand {...make.data} machines={isNamed ? 1 : uses} />
				) : (
					<div className="gp-stack">
						{make.error && <ProblemAlert title="There is no join command" error={make.error} />}
						<Form id={`${id}-form`} onSubmit={submit}>
							<FormGroup role="radiogroup" label="Which machines" fieldId={`${id}-which`} isStack>
								<Radio
									id={`${id}-any`}
									name="which"
									label="Any, each under its own hostname"
									isChecked={!isNamed}
									onChange={() => setIsNamed(false)}
									body={
										!isNamed && (
											<NumberInput
												value={uses}
												min={1}
												max={1000}
												inputAriaLabel="Number of machines"
												unit={uses === 1 ? "machine" : "machines"}
												widthChars={4}
												onMinus={() => setUses(uses - 1)}
												onPlus={() => setUses(uses + 1)}
												onChange={(event) => setUses(Math.trunc(Number(event.currentTarget.value)))}
												minusBtnAriaLabel="One less"
												plusBtnAriaLabel="One more"
											/>
										)
									}
								/>
								<Radio
									id={`${id}-one`}
									name="which"
									label="One, under a name that I give it"
									isChecked={isNamed}
									onChange={() => setIsNamed(true)}
									body={
										isNamed && (
											<>
												<TextInput
													aria-label="Name of the host"
													placeholder="host-1"
													value={name}
													onChange={(_event, value) => setName(value)}
													validated={name === "" || isHostName(name) ? "default" : "error"}
													autoComplete="off"
													spellCheck={false}
													autoFocus
												/>
												<FormHelperText>
													<HelperText>
														<HelperTextItem>Small letters, digits and hyphens; 63 characters at most.</HelperTextItem>
													</HelperText>
												</FormHelperText>
											</>
										)
									}
								/>
							</FormGroup>
							<FormGroup label="The command is good for" fieldId={`${id}-lifetime`}>
								<FormSelect
									id={`${id}-lifetime`}
									value={lifetime}
									onChange={(_event, value) => setLifetime(value)}
									className="gp-select"
								>
									{lifetimes.map(([value, label]) => (
										<FormSelectOption key={value} value={value} label={label} />
									))}
								</FormSelect>
							</FormGroup>
							<FormGroup fieldId={`${id}-approve`}>
								<Switch
									id={`${id}-approve`}
									label={approve ? "Approved at once" : "A person approves each host before anything is done on it"}
									isChecked={approve}
									onChange={(_event, checked) => setApprove(checked)}
								/>
							</FormGroup>
						</Form>
					</div>
				)}
			</ModalBody>
			<ModalFooter>
				{make.data ? (
					<Button onClick={onClose}>Close</Button>
				) : (
					<>
						<Button type="submit" form={`${id}-form`} isDisabled={!isValid} isLoading={make.isPending}>
							Make the command
						</Button>
						<Button variant="link" onClick={onClose}>
							Cancel
						</Button>
					</>
				)}
			</ModalFooter>
		</Modal>
	);
}

function JoinCommand({ command, expiresAt, machines }: { command: string; expiresAt: string; machines: number }) {
	const [isCopied, setIsCopied] = useState(false);
	// Hosts that were not there when the command was made.
	const hosts = useHosts();
	const [before] = useState(() => new Set(hosts.map(({ metadata }) => metadata.uid)));
	const joined = hosts.filter(({ metadata }) => !before.has(metadata.uid));
	return (
		<div className="gp-stack">
			<p>
				Run this on {machines === 1 ? "the machine" : `up to ${plural(machines, "machine")}`}, as root or as somebody
				who may use sudo, until {dateAndTime(Date.parse(expiresAt))}. It holds a secret, and is shown this once.
			</p>
			<code className="gp-command">{command}</code>
			<div>
				<Button
					variant="secondary"
					icon={<CopyIcon />}
					onClick={async () => {
						await navigator.clipboard.writeText(command);
						setIsCopied(true);
					}}
				>
					{isCopied ? "Copied" : "Copy"}
				</Button>
			</div>
			<div aria-live="polite">
				{joined.length === 0 ? (
					<div className="gp-row">
						<Spinner size="md" aria-label="Waiting" /> Waiting for it to join. You may close this; it shows up in the
						list.
					</div>
				) : (
					<ul className="gp-list">
						{joined.map((host) => (
							<li key={host.metadata.uid} className="gp-row">
								<Link to={`/hosts/${host.metadata.name}`}>{host.metadata.name}</Link>
								<StateLabel phase={hostPhase(host)} />
							</li>
						))}
					</ul>
				)}
			</div>
		</div>
	);
}
