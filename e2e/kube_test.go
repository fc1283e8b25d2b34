package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// deploy/kubernetes.yaml, played by podman: that runs its Deployment and makes its
// claims, and knows nothing of a Service, a NetworkPolicy, fsGroup, sysctls, the
// grace of a stop, and the medium and the size of an emptyDir.

const kubernetesFile = "deploy/kubernetes.yaml"

// machine is a Kubernetes file of a test's own, and what podman makes of it.
type machine struct {
	t    *testing.T
	name string // what cockpit-vm is called in it
	file string
	addr string
	m    *model
	pod  *vm // the last one that was played
}

// newMachine copies the file, with what must differ here: names, the image, the
// scripted model, and an address on the host's network, as the model listens there.
// Each of changes, old and new in turns, is there once.
func newMachine(t *testing.T, changes ...string) *machine {
	t.Helper()
	if engine != "podman" {
		t.Fatal("needs podman, which plays files of Kubernetes")
	}
	k := &machine{t: t, name: fmt.Sprintf("e2e-kube-%d", time.Now().UnixNano()), addr: freeAddr(t), m: &model{}}
	_, port, _ := net.SplitHostPort(k.addr)

	text := read(t, kubernetesFile)
	replace := func(old, new string, count int) {
		t.Helper()
		if got := strings.Count(text, old); got != count {
			t.Fatalf("%s has %q %d times, want %d", kubernetesFile, old, got, count)
		}
		text = strings.ReplaceAll(text, old, new)
	}
	for i := 0; i < len(changes); i += 2 {
		replace(changes[i], changes[i+1], 1)
	}
	replace(regexp.MustCompile(`registry\.example\.com/cockpit-vm:\S+`).FindString(text), image, 1)
	replace("port: 3001}", "port: "+port+"}", 3)
	more := "          env:\n"
	for _, entry := range []string{"VM_ADDR=" + k.addr, "VM_WARM=false", "ANTHROPIC_BASE_URL=" + newModelServer(t, k.m)} {
		name, value, _ := strings.Cut(entry, "=")
		more += fmt.Sprintf("            - {name: %s, value: %q}\n", name, value)
	}
	replace("          env:\n", more, 1)
	text = strings.ReplaceAll(text, "name: cockpit-vm", "name: "+k.name)
	text = strings.ReplaceAll(text, "claimName: cockpit-vm", "claimName: "+k.name)

	k.file = filepath.Join(t.TempDir(), "kubernetes.yaml")
	if err := os.WriteFile(k.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.down()
		k.podman("", "secret", "rm", k.name)
		k.podman("", "volume", "rm", k.name+"-workspace", k.name+"-home")
	})
	// The form in which podman 4.3 keeps a Secret.
	encode := base64.StdEncoding.EncodeToString
	k.podman(fmt.Sprintf(`{"VM_TOKEN":%q,"ANTHROPIC_API_KEY":%q}`, encode([]byte("dev")), encode([]byte("dummy-key"))), "secret", "create", k.name, "-")
	return k
}

func (k *machine) podman(stdin string, args ...string) string {
	k.t.Helper()
	cmd := exec.Command(engine, args...)
	cmd.Stdin = strings.NewReader(stdin)
	output, err := cmd.CombinedOutput()
	if err != nil {
		k.t.Errorf("podman %q: %v: %s", args, err, output)
	}
	return string(output)
}

// play starts the machine and waits until its server answers. Where the volumes are
// there already, the claims must not be: podman refuses them.
func (k *machine) play(claims bool) *vm {
	k.t.Helper()
	data, err := os.ReadFile(k.file)
	if err != nil {
		k.t.Fatal(err)
	}
	text := string(data)
	if !claims {
		text = text[strings.Index(text, "apiVersion: apps/v1"):]
	}
	said := strings.Fields(k.podman(text, "play", "kube", "--network=host", "-"))
	v := &vm{t: k.t, model: k.m, url: "http://" + k.addr, workspace: "/workspace", token: "dev", log: &buffer{}, done: make(chan struct{})}
	v.container = said[len(said)-1]
	k.pod = v
	v.eventually("the server is healthy", func() bool { return v.health() == http.StatusOK })
	return v
}

// down ends the machine; its volumes stay. podman would wait for 10 s, whatever the
// file says.
func (k *machine) down() {
	k.t.Helper()
	if k.podman("", "pod", "ps", "--quiet", "--filter=name="+k.name) == "" {
		return
	}
	if k.pod != nil {
		k.podman("", "stop", "--time=45", k.pod.container)
		if k.t.Failed() {
			k.t.Logf("the server's log:\n%s", k.podman("", "logs", k.pod.container))
		}
	}
	k.podman("", "kube", "down", k.file)
}

// health is what a probe gets: the status of GET /healthz, or 0.
func (v *vm) health() int {
	response, err := http.Get(v.url + "/healthz")
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

func TestImageTheFileForKubernetesMakesAMachineThatKeepsItsConversations(t *testing.T) {
	needImage(t)
	k := newMachine(t)
	v := k.play(true)

	first := v.ask("success", "said in the first pod")
	_, body, err := v.post(context.Background(), daemons+" echo ok", "")
	if err != nil || !strings.Contains(body, `"status":"success"`) || strings.Contains(body, `"swept":0`) {
		t.Errorf("with daemons: %v %s", err, body)
	}
	v.nothingLeft()
	got := v.bash("success", "env; touch /here || echo read-only")
	v.want(got, "read-only")
	for _, secret := range []string{"dummy-key", "VM_TOKEN"} {
		if strings.Contains(got, secret) {
			t.Errorf("the agent has %s:\n%s", secret, got)
		}
	}

	// Probes hold while a command runs; podman has the liveness probe as a healthcheck.
	// A stop lets that command end.
	done := make(chan string, 1)
	go func() {
		_, body, err := v.post(context.Background(), "bash: sleep 5; echo to the end", "")
		done <- fmt.Sprint(strings.TrimSpace(body), err)
	}()
	v.eventually("the command runs", func() bool { return strings.Contains(strings.Join(v.left(), "\n"), "sleep 5") })
	if got := v.health(); got != http.StatusOK || !v.healthy() {
		t.Errorf("a busy server is unhealthy: %d", got)
	}
	k.down()
	if got := <-done; !strings.Contains(got, `"status":"success","result":"to the end"`) {
		t.Errorf("the command that ran when it was stopped is answered %s", got)
	}

	v = k.play(false)
	if a := v.askIn("success", "recall", first.SessionID); a.Result != "said in the first pod" {
		t.Errorf("in the second pod: %+v", a)
	}
}

// What the kubelet makes of a new disk, with the fsGroup 1000: still root's, and the
// group's as well. That the kubelet does is not shown here.
func TestImageTheAgentOfTheFileForKubernetesCannotTouchTheServer(t *testing.T) {
	needRoot(t)
	k := newMachine(t)
	// podman fills a new volume from the image, once.
	workspace, home := k.name+"-workspace", k.name+"-home"
	k.podman("", "run", "--rm", "--network=none", "--entrypoint=true", "--volume="+workspace+":/workspace", "--volume="+home+":/home", image)
	os.RemoveAll(k.mountpoint(home) + "/node")
	for _, volume := range []string{workspace, home} {
		path := k.mountpoint(volume)
		k.giveToGroup(path+"/lost+found", 0o770)
		k.giveToGroup(path, 0o775)
	}
	v := k.play(false)
	got := v.bash("success", `id; stat -c '%n %u:%g %a' /workspace /home; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; `+attacks)
	v.want(got, `uid=1000\(node\) gid=1000\(node\) groups=1000\(node\).*`, "/workspace 0:1000 2775", "/home 0:1000 2775",
		`CapInh:\s0{16}`, `CapPrm:\s0{16}`, `CapEff:\s0{16}`, `CapAmb:\s0{16}`, `NoNewPrivs:\s1`, `Seccomp:\s2`,
		"environ: no", "memory: no", "descriptors: no", "signal: no", "exists: no", "binary: no", "entrypoint: no", "config: no", "replace: no", "cli: no",
		"root: no", "su: no", "workspace: yes")
	server, err := v.inside("grep", "-E", "^Cap(Prm|Eff|Bnd)", "/proc/1/status")
	if err != nil {
		t.Error(err)
	}
	const three = "00000000000000e0" // KILL, SETGID, SETUID
	v.want(server, `CapPrm:\s`+three, `CapEff:\s`+three, `CapBnd:\s`+three)
}

// The control: with one user for both, the same tries reach the server.
func TestImageOneUserForBothIsWeakerOnKubernetesToo(t *testing.T) {
	needImage(t)
	v := newMachine(t, "runAsUser: 0 ", "runAsUser: 1000 ").play(true)
	harmless := strings.Replace(attacks, "tried signal 'kill -TERM 1'; ", "", 1)
	v.want(v.bash("success", harmless), "exists: yes", "workspace: yes", "binary: no", "root: no")
}

func (k *machine) mountpoint(volume string) string {
	k.t.Helper()
	return strings.TrimSpace(k.podman("", "volume", "inspect", "--format", "{{.Mountpoint}}", volume))
}

// giveToGroup makes a folder as it is after the kubelet gave it to a group.
func (k *machine) giveToGroup(path string, mode os.FileMode) {
	k.t.Helper()
	os.Mkdir(path, 0o755)
	if err := os.Chown(path, 0, 1000); err != nil {
		k.t.Fatal(err)
	}
	if err := os.Chmod(path, mode|os.ModeSetgid); err != nil {
		k.t.Fatal(err)
	}
}

// What compose.yaml sets, this file sets too. Not here is what Kubernetes leaves to
// the node: the number of processes, and the size of /dev/shm.
func TestTheFileForKubernetesIsAsHardAsCompose(t *testing.T) {
	var file struct {
		Spec struct {
			Template struct {
				Spec struct {
					Grace           int `yaml:"terminationGracePeriodSeconds"`
					SecurityContext struct {
						Sysctls []struct{ Name, Value string }
					} `yaml:"securityContext"`
					Containers []struct {
						Env             []struct{ Name string }
						Resources       struct{ Limits struct{ Memory string } }
						SecurityContext struct {
							ReadOnly     bool `yaml:"readOnlyRootFilesystem"`
							Escalation   bool `yaml:"allowPrivilegeEscalation"`
							Capabilities struct{ Drop, Add []string }
						} `yaml:"securityContext"`
					}
					Volumes []struct {
						Name     string
						EmptyDir struct {
							Medium string
							Size   string `yaml:"sizeLimit"`
						} `yaml:"emptyDir"`
					}
				}
			}
		}
	}
	_, text, _ := strings.Cut(read(t, kubernetesFile), "\n---\napiVersion: apps/v1\n")
	text, _, _ = strings.Cut(text, "\n---\n")
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}

	pod := file.Spec.Template.Spec
	size := func(s string) string { return strings.ToLower(strings.TrimSuffix(s, "i")) }
	flags := []string{fmt.Sprint("--stop-timeout=", pod.Grace)}
	for _, sysctl := range pod.SecurityContext.Sysctls {
		flags = append(flags, "--sysctl="+sysctl.Name+"="+sysctl.Value)
	}
	for _, c := range pod.Containers {
		flags = append(flags, fmt.Sprint("--read-only=", c.SecurityContext.ReadOnly), "--memory="+size(c.Resources.Limits.Memory))
		if !c.SecurityContext.Escalation {
			flags = append(flags, "--security-opt=no-new-privileges")
		}
		for _, name := range c.SecurityContext.Capabilities.Drop {
			flags = append(flags, "--cap-drop="+name)
		}
		for _, name := range c.SecurityContext.Capabilities.Add {
			flags = append(flags, "--cap-add="+name)
		}
	}
	var names []string
	for _, entry := range pod.Containers[0].Env {
		names = append(names, entry.Name)
	}
	slices.Sort(names)
	compose := readCompose(t, "compose.yaml", map[string]string{"VM_TOKEN": "x"}).Services["vm"]["environment"].(map[string]any)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(compose)), names); diff != "" {
		t.Errorf("variables (-compose.yaml +kubernetes.yaml):\n%s", diff)
	}
	for _, volume := range pod.Volumes {
		if volume.EmptyDir.Medium == "Memory" {
			flags = append(flags, "--tmpfs=/"+volume.Name+":exec,size="+size(volume.EmptyDir.Size))
		}
	}
	want := slices.DeleteFunc(composeFlags(t), func(flag string) bool {
		return strings.HasPrefix(flag, "--pids-limit=") || strings.HasPrefix(flag, "--shm-size=")
	})
	slices.Sort(want)
	slices.Sort(flags)
	if diff := cmp.Diff(want, flags); diff != "" {
		t.Errorf("compose.yaml's flags, and this file's (-want +got):\n%s", diff)
	}
}
