package kubernetes

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// built are the manifests as kubectl apply --kustomize sends them, each decoded as a
// server does that takes no unknown or repeated field.
func built(t *testing.T) []runtime.Object {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "../../deploy/kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	text, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	documents := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	defer func() { _ = documents.Close() }()
	for {
		document := make([]byte, 1<<20)
		n, err := documents.Read(document)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := strict.Decode(document[:n], nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document[:n])
		}
		objects = append(objects, object)
	}
}

// pod is what a workload runs, and under which labels it looks for it.
type pod struct {
	name     string
	template corev1.PodTemplateSpec
	selector *metav1.LabelSelector
	claims   []corev1.PersistentVolumeClaim
}

func pods(objects []runtime.Object) (found []pod) {
	for _, object := range objects {
		switch o := object.(type) {
		case *appsv1.StatefulSet:
			found = append(found, pod{o.Name, o.Spec.Template, o.Spec.Selector, o.Spec.VolumeClaimTemplates})
		case *appsv1.Deployment:
			found = append(found, pod{o.Name, o.Spec.Template, o.Spec.Selector, nil})
		case *batchv1.Job:
			found = append(found, pod{o.Name, o.Spec.Template, nil, nil})
		}
	}
	return found
}

// TestManifests: a cluster takes them, and their parts find each other.
func TestManifests(t *testing.T) {
	t.Parallel()
	objects := built(t)
	running := pods(objects)
	if len(running) != 3 {
		t.Fatalf("%d workloads, want setup, worker and publisher", len(running))
	}
	settings := ""
	for _, object := range objects {
		if m, is := object.(*corev1.ConfigMap); is {
			settings = m.Name
		}
	}
	for _, p := range running {
		checkPod(t, p, settings)
	}
	for _, object := range objects {
		if meta, is := object.(metav1.Object); is && meta.GetNamespace() != "jetpost" {
			t.Errorf("%s is not in the namespace", meta.GetName())
		}
		switch o := object.(type) {
		case *policyv1.PodDisruptionBudget:
			selects(t, o.Name, o.Spec.Selector, running, 1)
		case *networkingv1.NetworkPolicy:
			selects(t, o.Name, &o.Spec.PodSelector, running, len(running))
		case *corev1.Service:
			selects(t, o.Name, metav1.SetAsLabelSelector(o.Spec.Selector), running, 1)
		}
	}
}

// selects wants a selector to find so many of the pods.
func selects(t *testing.T, name string, selector *metav1.LabelSelector, running []pod, want int) {
	t.Helper()
	by, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, p := range running {
		if by.Matches(labels.Set(p.template.Labels)) {
			found++
		}
	}
	if found != want {
		t.Errorf("%s selects %d workloads, want %d", name, found, want)
	}
}

// checkPod holds a pod to what jetpost has and needs.
func checkPod(t *testing.T, p pod, settings string) {
	t.Helper()
	if p.selector != nil {
		selects(t, p.name, p.selector, []pod{p}, 1)
	}
	spec := p.template.Spec
	if spec.SecurityContext == nil || spec.SecurityContext.RunAsUser == nil || *spec.SecurityContext.RunAsUser != 65532 || !*spec.SecurityContext.RunAsNonRoot {
		t.Errorf("%s: runs as another user than the image's", p.name)
	}
	volumes := []string{}
	for _, v := range spec.Volumes {
		volumes = append(volumes, v.Name)
	}
	for _, c := range p.claims {
		volumes = append(volumes, c.Name)
	}
	for _, c := range spec.Containers {
		if s := c.SecurityContext; s == nil || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || !slices.Contains(s.Capabilities.Drop, "ALL") {
			t.Errorf("%s: may do more than it needs", p.name)
		}
		if len(c.EnvFrom) != 1 || c.EnvFrom[0].ConfigMapRef.Name != settings {
			t.Errorf("%s: does not read the settings %s", p.name, settings)
		}
		for _, m := range c.VolumeMounts {
			if !slices.Contains(volumes, m.Name) {
				t.Errorf("%s: mounts %s, which is no volume", p.name, m.Name)
			}
		}
		worker := slices.Contains(c.Args, "worker")
		if worker && (c.ReadinessProbe == nil || c.LivenessProbe == nil || *spec.TerminationGracePeriodSeconds < 60) {
			t.Errorf("%s: is not probed, or has no time to end its work", p.name)
		}
		// What refreshes tokens keeps pairs that must outlive the pod.
		if publishesAlone := slices.Contains(c.Args, "--roles"); worker && !publishesAlone && len(p.claims) == 0 {
			t.Errorf("%s: refreshes without a volume of its own", p.name)
		}
	}
}
