// The host controller of our operator (operator/host) written with controller-runtime, as a yardstick for `hack/bench operator`:
// the same caches with the same fields, the same decision, the same writes when something is not as it should be.
//
// It speaks in lines: on standard output {"event":"idle",...} when everything was looked at once, then for each line "resync N" on
// standard input N rounds over all hosts and {"event":"resync",...}; it ends with its standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

const (
	finalizer = "groundplane.io/host"
	epoch     = "groundplane.io/epoch"
	manager   = "groundplane-host"
)

func main() {
	if err := run(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	startedAt := time.Now()
	log.SetLogger(logr.Discard())
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(groupVersion, &Host{}, &HostList{}, &Cluster{}, &ClusterList{})
	metav1.AddToGroupVersion(scheme, groupVersion)
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	// As ours, which has no limit of its own: the API server's priority and fairness decides.
	config.QPS = -1
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:  scheme,
		Metrics: server.Options{BindAddress: "0"},
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         map[client.Object]cache.ByObject{&Host{}: {Transform: slim}},
		},
	})
	if err != nil {
		return err
	}
	hosts := &hostReconciler{client: mgr.GetClient()}
	var queue workqueue.TypedRateLimitingInterface[reconcile.Request]
	err = ctrl.NewControllerManagedBy(mgr).
		For(&Host{}).
		WatchesRawSource(source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			queue = q
			return nil
		})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(hosts)
	if err != nil {
		return err
	}
	// Held, as our operator holds them.
	if _, err := mgr.GetCache().GetInformer(ctx, &Cluster{}); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- mgr.Start(ctx) }()

	if !mgr.GetCache().WaitForCacheSync(ctx) {
		return <-failed
	}
	var list HostList
	if err := mgr.GetClient().List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	requests := make([]reconcile.Request, len(list.Items))
	for i, host := range list.Items {
		requests[i] = reconcile.Request{NamespacedName: types.NamespacedName{Namespace: host.Namespace, Name: host.Name}}
	}
	list = HostList{}
	hosts.wait(int64(len(requests)))
	say("idle", map[string]any{"seconds": time.Since(startedAt).Seconds()})

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		rounds, err := strconv.Atoi(strings.TrimPrefix(lines.Text(), "resync "))
		if err != nil {
			return err
		}
		from, before, cpu := time.Now(), hosts.done.Load(), cpuSeconds()
		for round := range rounds {
			for _, request := range requests {
				queue.Add(request)
			}
			hosts.wait(before + int64(len(requests)*(round+1)))
		}
		say("resync", map[string]any{
			"reconciles": hosts.done.Load() - before,
			"seconds":    time.Since(from).Seconds(),
			"cpuSeconds": cpuSeconds() - cpu,
			"writes":     hosts.writes.Load(),
		})
	}
	return nil
}

type hostReconciler struct {
	client client.Client
	done   atomic.Int64
	writes atomic.Int64
}

func (r *hostReconciler) wait(count int64) {
	for r.done.Load() < count {
		time.Sleep(time.Millisecond)
	}
}

func (r *hostReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	defer r.done.Add(1)
	var host Host
	if err := r.client.Get(ctx, request.NamespacedName, &host); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if err := r.writeStatus(ctx, &host); err != nil {
		return reconcile.Result{}, err
	}
	if !host.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, nil
	}
	if !controllerutil.ContainsFinalizer(&host, finalizer) {
		r.writes.Add(1)
		old := host.DeepCopyObject().(*Host)
		controllerutil.AddFinalizer(&host, finalizer)
		patch := client.MergeFromWithOptions(old, client.MergeFromWithOptimisticLock{})
		if err := r.client.Patch(ctx, &host, patch); err != nil {
			return reconcile.Result{}, err
		}
	}
	if host.Annotations[epoch] == "" {
		r.writes.Add(1)
		old := host.DeepCopyObject().(*Host)
		metav1.SetMetaDataAnnotation(&host.ObjectMeta, epoch, "1")
		if err := r.client.Patch(ctx, &host, client.MergeFrom(old)); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{}, nil
}

func (r *hostReconciler) writeStatus(ctx context.Context, host *Host) error {
	phase, ready := summarize(host)
	conditions := slices.Clone(host.Status.Conditions)
	changed := meta.SetStatusCondition(&conditions, ready)
	if !changed && host.Status.Phase == phase && host.Status.ObservedGeneration == host.Generation {
		return nil
	}
	r.writes.Add(1)
	old := host.DeepCopyObject().(*Host)
	host.Status.Conditions, host.Status.Phase, host.Status.ObservedGeneration = conditions, phase, host.Generation
	err := r.client.Status().Patch(ctx, host, client.MergeFrom(old), client.FieldOwner(manager))
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// The decision of operator/host/summary.ts.
func summarize(host *Host) (string, metav1.Condition) {
	say := func(phase string, status metav1.ConditionStatus, reason, message string) (string, metav1.Condition) {
		return phase, metav1.Condition{
			Type: "Ready", Status: status, Reason: reason, Message: message, ObservedGeneration: host.Generation,
		}
	}
	status := &host.Status
	if !host.DeletionTimestamp.IsZero() {
		return say("Deleting", "False", "Deleting",
			"The host is being cleaned; its certificate is revoked when that is done.")
	}
	if status.Connection == nil {
		return say("Pending", "Unknown", "NeverConnected",
			"The agent has not dialled in yet. On the host: systemctl status gp-agent.")
	}
	if !host.Spec.Approved {
		return say("AwaitingApproval", "False", "AwaitingApproval",
			fmt.Sprintf("A person has to approve this host: gp host approve %s.", host.Name))
	}
	if status.Connection.State != "Connected" {
		why := ""
		if status.Connection.Reason != "" {
			why = fmt.Sprintf(" (%s)", status.Connection.Reason)
		}
		return say("Disconnected", "False", "Disconnected", fmt.Sprintf(
			"The tunnel has been down since %s%s. The host keeps to its last desired state. On the host: systemctl status gp-agent.",
			status.Connection.Since, why))
	}
	if host.Spec.Maintenance {
		return say("Maintenance", "False", "Maintenance",
			fmt.Sprintf("Nothing is changed on this host: gp host maintenance %s off ends that.", host.Name))
	}
	if i := slices.IndexFunc(status.Roles, func(r RoleStatus) bool { return r.Phase == "Failed" }); i >= 0 {
		role := status.Roles[i]
		return say("Failed", "False", role.Reason,
			fmt.Sprintf("Role %s: %s: %s It is tried again.", role.Name, role.Step, role.Message))
	}
	var unmet []string
	for _, check := range status.Checks {
		if !check.OK && check.Severity == "error" {
			unmet = append(unmet, strings.TrimSpace(check.Message+" "+check.Next))
		}
	}
	if len(unmet) > 0 {
		return say("Failed", "False", "PrerequisiteNotMet",
			"The host does not meet the prerequisites: "+strings.Join(unmet, "; "))
	}
	phases := []string{"Pending", "Applying", "Applied", "Failed", "Removing"}
	if applied := meta.FindStatusCondition(status.Conditions, "RolesApplied"); applied != nil &&
		applied.Status == "False" && !slices.Contains(phases, applied.Reason) {
		return say("Failed", "False", applied.Reason, applied.Message)
	}
	if i := slices.IndexFunc(status.Roles, func(r RoleStatus) bool { return r.Phase != "Applied" }); i >= 0 {
		role := status.Roles[i]
		return say("Working", "False", role.Phase,
			strings.TrimSpace(fmt.Sprintf("Role %s: %s %s", role.Name, role.Step, role.Progress)))
	}
	for _, role := range host.Spec.Roles {
		if !slices.ContainsFunc(status.Roles, func(r RoleStatus) bool { return r.Name == role.Name }) {
			return say("Working", "False", "Pending", fmt.Sprintf("Role %s: waiting for the host to begin.", role.Name))
		}
	}
	if len(host.Spec.Roles) == 0 {
		return say("Ready", "True", "Connected", "The host is free for use.")
	}
	return say("Ready", "True", "Connected", "The host is what it should be.")
}

// slim drops what slimHost of operator/deps.ts drops.
func slim(object any) (any, error) {
	host, ok := object.(*Host)
	if !ok {
		return object, nil
	}
	host.ManagedFields = nil
	if facts := host.Status.Facts; facts != nil {
		facts.Disks, facts.Filesystems, facts.Interfaces = nil, nil, nil
	}
	host.Status.Checks = slices.DeleteFunc(host.Status.Checks, func(check Check) bool { return check.OK })
	return host, nil
}

// say prints what happened, with the memory that the process has then.
func say(event string, facts map[string]any) {
	facts["event"] = event
	facts["rssMiB"] = rssMiB()
	line, _ := json.Marshal(facts)
	fmt.Println(string(line))
}

func rssMiB() float64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseFloat(strings.Fields(string(statm))[1], 64)
	return pages * float64(os.Getpagesize()) / (1 << 20)
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}
