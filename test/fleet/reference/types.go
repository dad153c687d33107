package main

import (
	"encoding/json"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var groupVersion = schema.GroupVersion{Group: "groundplane.io", Version: "v1alpha1"}

// The fields of Host and Cluster (crds/) that our operator keeps, in Go. Deep copies are written as controller-gen would.

type Host struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              HostSpec   `json:"spec"`
	Status            HostStatus `json:"status,omitzero"`
}

type HostSpec struct {
	Approved    bool       `json:"approved"`
	Maintenance bool       `json:"maintenance"`
	Roles       []HostRole `json:"roles,omitempty"`
}

type HostRole struct {
	Name       string               `json:"name"`
	Version    string               `json:"version"`
	Parameters runtime.RawExtension `json:"parameters,omitzero"`
	SecretName string               `json:"secretName,omitempty"`
}

type HostStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Phase              string             `json:"phase,omitempty"`
	Facts              *Facts             `json:"facts,omitempty"`
	Checks             []Check            `json:"checks,omitempty"`
	Agent              *Agent             `json:"agent,omitempty"`
	Connection         *Connection        `json:"connection,omitempty"`
	DesiredState       *DesiredState      `json:"desiredState,omitempty"`
	Cluster            string             `json:"cluster,omitempty"`
	Roles              []RoleStatus       `json:"roles,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

type Facts struct {
	Hostname       string          `json:"hostname"`
	MachineID      string          `json:"machineId"`
	Architecture   string          `json:"architecture"`
	OS             OS              `json:"os"`
	Kernel         string          `json:"kernel"`
	Cgroup         string          `json:"cgroup"`
	CPU            CPU             `json:"cpu"`
	MemoryBytes    int64           `json:"memoryBytes"`
	Disks          json.RawMessage `json:"disks,omitempty"`
	Filesystems    json.RawMessage `json:"filesystems,omitempty"`
	Interfaces     json.RawMessage `json:"interfaces,omitempty"`
	PrimaryAddress string          `json:"primaryAddress"`
	BootID         string          `json:"bootId"`
}
type OS struct {
	ID         string `json:"id"`
	VersionID  string `json:"versionId"`
	PrettyName string `json:"prettyName"`
}
type CPU struct {
	Cores int64  `json:"cores"`
	Model string `json:"model"`
}
type Check struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Severity string `json:"severity"`
	Message  string `json:"message"`
	Next     string `json:"next,omitempty"`
}
type Agent struct {
	Version             string `json:"version,omitempty"`
	CertificateNotAfter string `json:"certificateNotAfter,omitempty"`
}
type Connection struct {
	State   string `json:"state"`
	Gateway string `json:"gateway,omitempty"`
	Address string `json:"address,omitempty"`
	Since   string `json:"since,omitempty"`
	Reason  string `json:"reason,omitempty"`
}
type DesiredState struct {
	Generation             *int64 `json:"generation,omitempty"`
	AcknowledgedGeneration *int64 `json:"acknowledgedGeneration,omitempty"`
	ReportedGeneration     *int64 `json:"reportedGeneration,omitempty"`
	ValidUntil             string `json:"validUntil,omitempty"`
}
type RoleStatus struct {
	Name     string            `json:"name"`
	Version  string            `json:"version,omitempty"`
	Phase    string            `json:"phase"`
	Step     string            `json:"step,omitempty"`
	Progress string            `json:"progress,omitempty"`
	Reason   string            `json:"reason,omitempty"`
	Message  string            `json:"message,omitempty"`
	Outputs  map[string]string `json:"outputs,omitempty"`
}

type HostList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Host `json:"items"`
}

// Cluster is only held in the cache: its spec and status as they come.
type Cluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              json.RawMessage `json:"spec"`
	Status            json.RawMessage `json:"status,omitempty"`
}

type ClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Cluster `json:"items"`
}

func clone[T any](value *T) *T {
	if value == nil {
		return nil
	}
	copied := *value
	return &copied
}

func (in *Host) DeepCopyObject() runtime.Object {
	out := &Host{TypeMeta: in.TypeMeta, Spec: in.Spec, Status: in.Status}
	in.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.Roles = slices.Clone(in.Spec.Roles)
	for i := range out.Spec.Roles {
		in.Spec.Roles[i].Parameters.DeepCopyInto(&out.Spec.Roles[i].Parameters)
	}
	out.Status.Facts = clone(in.Status.Facts)
	if out.Status.Facts != nil {
		out.Status.Facts.Disks = slices.Clone(in.Status.Facts.Disks)
		out.Status.Facts.Filesystems = slices.Clone(in.Status.Facts.Filesystems)
		out.Status.Facts.Interfaces = slices.Clone(in.Status.Facts.Interfaces)
	}
	out.Status.Checks = slices.Clone(in.Status.Checks)
	out.Status.Agent = clone(in.Status.Agent)
	out.Status.Connection = clone(in.Status.Connection)
	out.Status.DesiredState = clone(in.Status.DesiredState)
	if desired := out.Status.DesiredState; desired != nil {
		desired.Generation = clone(desired.Generation)
		desired.AcknowledgedGeneration = clone(desired.AcknowledgedGeneration)
		desired.ReportedGeneration = clone(desired.ReportedGeneration)
	}
	out.Status.Roles = slices.Clone(in.Status.Roles)
	for i := range out.Status.Roles {
		out.Status.Roles[i].Outputs = maps.Clone(in.Status.Roles[i].Outputs)
	}
	out.Status.Conditions = slices.Clone(in.Status.Conditions)
	return out
}

func (in *HostList) DeepCopyObject() runtime.Object {
	out := &HostList{TypeMeta: in.TypeMeta, Items: make([]Host, len(in.Items))}
	in.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range in.Items {
		out.Items[i] = *in.Items[i].DeepCopyObject().(*Host)
	}
	return out
}

func (in *Cluster) DeepCopyObject() runtime.Object {
	out := &Cluster{TypeMeta: in.TypeMeta, Spec: slices.Clone(in.Spec), Status: slices.Clone(in.Status)}
	in.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

func (in *ClusterList) DeepCopyObject() runtime.Object {
	out := &ClusterList{TypeMeta: in.TypeMeta, Items: make([]Cluster, len(in.Items))}
	in.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range in.Items {
		out.Items[i] = *in.Items[i].DeepCopyObject().(*Cluster)
	}
	return out
}
