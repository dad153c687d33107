/*
 * Holds the namespaces of a pod: waits for ever, and reaps the orphans of a shared PID namespace. With -v it says what it is and ends,
 * as upstream's does: kubeadm upgrade runs that as a Job, to see whether the cluster can run pods.
 */
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signal) {
	(void)signal;
	_exit(0);
}

static void reap(int signal) {
	(void)signal;
	while (waitpid(-1, 0, WNOHANG) > 0)
		;
}

int main(int argc, char **argv) {
	if (argc > 1 && !strcmp(argv[1], "-v"))
		return write(1, "pause\n", 6) != 6;
	const struct sigaction onStop = {.sa_handler = stop};
	const struct sigaction onChild = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
	if (sigaction(SIGINT, &onStop, 0) || sigaction(SIGTERM, &onStop, 0) || sigaction(SIGCHLD, &onChild, 0))
		return 1;
	for (;;)
		pause();
}
