package main

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tries prints a line for each try to reach something, all at the same time. A
// link-local address is tried for some seconds, as the kernel doesn't use a new one
// before it has asked whether it is another's (RFC 4862, 5.4).
const tries = `
out=$(mktemp -d)
try() { { if timeout ${WITHIN:-30} sh -c "$2" 2>&1 | grep -q reached; then echo "$1: yes"; else echo "$1: no"; fi; } >"$out/$(echo "$1" | tr ' /' '__')" & }
web() { try "$1" "curl -gsLkm 20 --connect-timeout 5 '$2'"; }
alone() { try "$1" "curl -gsLkm 5 --noproxy '*' '$2'"; }
soon() { try "$1" "curl -gsm 5 --retry 6 --retry-delay 1 --retry-all-errors --noproxy '*' '$2'"; }
program() { try "$1" "node -e \"$2\""; }

web 'an allowed name' http://allowed.example/
web 'an allowed name by TLS' https://allowed.example/
web 'a name below one with a dot' https://a.below.example/
web 'a denied name' http://denied.example/
web 'a denied name by TLS' https://denied.example/
web 'a redirect to a denied name' http://allowed.example/redirect
web 'an allowed name at another port' http://allowed.example:8080/
web 'an address' http://$OUT/
web 'an address by TLS' https://$OUT/
web 'an address as a number' http://$NUMBER/
web 'an IPv6 address' "http://[$OUT6]/"
web 'a name of a private address' http://private.example/
web 'a name of a private address by TLS' https://private.example/
web 'a name of a public and a private address' http://mixed.example/
web 'a private address' http://$LAN/
alone 'an address without the proxy' http://$OUT/
alone 'an IPv6 address without the proxy' "http://[$OUT6]/"
alone 'a private address without the proxy' http://$LAN/
alone 'an allowed name without the proxy' http://allowed.example/
alone 'the machine on the same network' http://$MACHINE/
soon 'the machine by its link-local address' "http://[$LINK%25eth0]:${MACHINE##*:}/"
program 'node: an allowed name' "fetch('https://allowed.example/').then(r=>r.text()).then(console.log)"
program 'node: an allowed name without TLS' "fetch('http://allowed.example/').then(r=>r.text()).then(console.log)"
program 'node: a denied name' "fetch('https://denied.example/').then(r=>r.text()).then(console.log)"
try 'git: an allowed name' "git ls-remote http://allowed.example/x"
try 'git: a denied name' "git ls-remote http://denied.example/x"
try 'npm: an allowed name' "npm view package description --registry=http://allowed.example/ --fetch-retries=0 --no-update-notifier --cache=$out.npm"
try 'python: an allowed name' "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://allowed.example/\").read())'"
try 'a question for a name' "getent ahostsv4 secret.example | sed s/$OUT/reached/"
program 'a question for a name, sent to a server' "r=new (require('dns').Resolver)({timeout:2000,tries:1});r.setServers(['$OUT']);r.resolve4('secret.example',(e,a)=>console.log(e?e.code:'reached'))"
program 'node: a socket' "require('net').connect(80,'$OUT').on('connect',()=>{console.log('reached');process.exit()})"
wait
cat "$out"/*
rm -rf "$out" "$out.npm"
`

// want is which of the tries get through: all of them, or those that are named.
func wanted(all bool, named ...string) map[string]bool {
	want := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^(?:web|alone|soon|program|try) '([^']+)'`).FindAllStringSubmatch(tries, -1) {
		want[match[1]] = all || slices.Contains(named, match[1])
	}
	return want
}

// allowed are the tries that are to get through.
var allowed = []string{"an allowed name", "an allowed name by TLS", "a name below one with a dot", "node: an allowed name", "node: an allowed name without TLS",
	"git: an allowed name", "npm: an allowed name", "python: an allowed name"}

// script is the tries with this world's addresses; machine is where this machine is on
// the container's network, of that kind.
func (w *world) script(network, machine string) string {
	address := net.ParseIP(w.out).To4()
	number := int(address[0])<<24 | int(address[1])<<16 | int(address[2])<<8 | int(address[3])
	return fmt.Sprintf("OUT=%s OUT6=%s LAN=%s NUMBER=%d MACHINE=%s:%s LINK=%s sh /workspace/tries",
		w.out, w.out6, w.lan, number, machine, w.port, w.linkLocal(network))
}

// linkLocal is this machine's address of that kind on a network, once a container is on it.
func (w *world) linkLocal(network string) string {
	w.t.Helper()
	var bridge string
	if engine == "podman" {
		bridge = run(w.t, "network", "inspect", "--format={{.NetworkInterface}}", w.name+"-"+network)
	} else {
		bridge = "br-" + run(w.t, "network", "inspect", "--format={{slice .Id 0 12}}", w.name+"-"+network)
	}
	var link string
	eventually(w.t, bridge+" has a link-local address", func() bool {
		link = linkLocalOf(bridge)
		return link != ""
	}, func() string { return "the network has no IPv6" })
	return link
}

// linkLocalOf is an interface's address of that kind, or nothing: a bridge has none before
// something is on it.
func linkLocalOf(name string) string {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return ""
	}
	addresses, err := link.Addrs()
	if err != nil {
		return ""
	}
	for _, address := range addresses {
		prefix, err := netip.ParsePrefix(address.String())
		if err == nil && prefix.Addr().Is6() && prefix.Addr().IsLinkLocalUnicast() {
			return prefix.Addr().String()
		}
	}
	return ""
}

// tell reads what the tries printed.
func tell(output string) map[string]bool {
	got := map[string]bool{}
	for line := range strings.Lines(output) {
		if name, said, found := strings.Cut(strings.TrimSpace(line), ": "); found {
			if more, last, isLonger := strings.Cut(said, ": "); isLonger {
				name, said = name+": "+more, last
			}
			got[name] = said == "yes"
		}
	}
	return got
}

func compare(t *testing.T, want, got map[string]bool) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what gets through (-want +got):\n%s", diff)
	}
}

// asNode runs the tries as the agent's user, without asking the server.
func (w *world) asNode(kind, network, machine string, flags ...string) map[string]bool {
	w.t.Helper()
	args := append(append([]string{"exec", "--user=node"}, flags...), w.name+"-"+kind, "sh", "-c", w.script(network, machine))
	return tell(run(w.t, args...))
}

// The promise, by the agent itself: the command comes in by the gateway's port, the
// model is reached by the gateway's proxy, and what the agent tries in Bash, in node and
// in Chromium gets to allowed names alone.
func TestImageTheAgentReachesAllowedNamesAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insideNetwork()
	_, port, _ := net.SplitHostPort(freeAddr(t))
	w.gateway(port)
	t.Cleanup(func() { w.remove("gateway") })
	ca := w.listen()
	v := w.agent(ca, port)
	eventually(t, "the server answers at the gateway's port", func() bool {
		response, err := http.Get(v.url + "/healthz")
		if err == nil {
			response.Body.Close()
		}
		return err == nil
	}, func() string { return run(t, "logs", w.name+"-gateway") })

	machine := w.inside + ".1"
	compare(t, wanted(false, allowed...), tell(v.bash("success", w.script("inside", machine))))

	for _, test := range []struct {
		name, url string
		want      string
	}{
		{"an allowed name", "http://allowed.example/", "Page Title: reached allowed.example"},
		{"a denied name", "http://denied.example/", "The requested URL could not be retrieved"},
		{"a denied name by TLS", "https://denied.example/", "ERR_TUNNEL_CONNECTION_FAILED"},
		{"a redirect to a denied name", "http://allowed.example/redirect", "The requested URL could not be retrieved"},
		{"a name of a private address", "http://private.example/", "The requested URL could not be retrieved"},
		{"an address", "http://" + w.out + "/", "The requested URL could not be retrieved"},
	} {
		t.Run("Chromium opens "+test.name, func(t *testing.T) {
			if _, body, _ := v.post(t.Context(), "open: "+test.url, ""); !strings.Contains(body, test.want) {
				t.Errorf("%s, want %q", body, test.want)
			}
		})
	}

	w.mu.Lock()
	got := slices.Sorted(maps.Keys(w.seen))
	w.mu.Unlock()
	if diff := cmp.Diff([]string{"a.below.example", "allowed.example", "model.example"}, got); diff != "" {
		t.Errorf("hosts that were reached (-want +got):\n%s", diff)
	}
	logged := run(t, "logs", w.name+"-gateway")
	for _, line := range []string{"TCP_DENIED/403 GET denied.example:80", "TCP_MISS/200 GET allowed.example:80"} {
		if !strings.Contains(logged, line) {
			t.Errorf("the gateway's log has no %q:\n%s", line, logged)
		}
	}

	t.Run("the gateway's port for the relay is not there on the inside", func(t *testing.T) {
		const connect = "timeout 3 bash -c ': </dev/tcp/%s' && echo open || echo closed"
		got := run(t, "exec", "--user=node", w.name+"-vm", "bash", "-c", fmt.Sprintf(connect, w.inside+".2/3001")+"; "+fmt.Sprintf(connect, w.inside+".2/3128"))
		if !strings.HasSuffix(got, "closed\nopen") {
			t.Errorf("ports 3001 and 3128: %s", got)
		}
	})

	t.Run("odd requests", func(t *testing.T) {
		want, got := map[string]string{}, map[string]string{}
		for _, test := range []struct{ name, request, status string }{
			{"the plain form, as a control", "GET http://allowed.example/ HTTP/1.1\r\nHost: allowed.example", "200"},
			{"a tunnel, as a control", "CONNECT allowed.example:443 HTTP/1.1", "200"},
			{"a denied name, with an allowed one as Host", "GET http://denied.example/ HTTP/1.1\r\nHost: allowed.example", "403"},
			{"a tunnel to a denied name, with an allowed one as Host", "CONNECT denied.example:443 HTTP/1.1\r\nHost: allowed.example", "403"},
			{"a denied name after an allowed one as user", "GET http://allowed.example@denied.example/ HTTP/1.1", "403"},
			{"a name that only ends like an allowed one", "CONNECT xallowed.example:443 HTTP/1.1", "403"},
			{"a name below an allowed one without a dot", "CONNECT a.allowed.example:443 HTTP/1.1", "403"},
			{"a tunnel to another port", "CONNECT allowed.example:22 HTTP/1.1", "403"},
			{"a port that is 443 in 16 bits", "CONNECT allowed.example:65979 HTTP/1.1", "400"},
			{"FTP", "GET ftp://allowed.example:80/ HTTP/1.1", "403"},
			{"TLS by the proxy's own hand", "GET https://allowed.example/ HTTP/1.1", "403"},
			{"Squid's own pages", "GET http://gateway:3128/squid-internal-mgr/info HTTP/1.1", "403"},
			{"Squid's own pages in the old form", "GET cache_object://allowed.example/info HTTP/1.1", "403"},
			{"an IPv4 address in IPv6 form", "CONNECT [::ffff:" + w.lan + "]:443 HTTP/1.1", "403"},
			{"the gateway itself", "CONNECT 127.0.0.1:443 HTTP/1.1", "403"},
			{"a cloud's metadata", "GET http://169.254.169.254/ HTTP/1.1", "403"},
			{"an allowed name without an address", "CONNECT none.below.example:443 HTTP/1.1", "503"},
		} {
			want[test.name] = test.status
			script := fmt.Sprintf(`exec 3<>/dev/tcp/gateway/3128; printf '%s\r\n\r\n' >&3; read -r -t 20 _ status _ <&3; echo "$status"`, strings.ReplaceAll(test.request, "\r\n", `\r\n`))
			got[test.name] = run(t, "exec", "--user=node", w.name+"-vm", "bash", "-c", script)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the status (-want +got):\n%s", diff)
		}
	})

	// The controls: with the rules off, what they are there for gets through.
	for _, test := range []struct {
		name    string
		changes []string // what is there, and what is to be
		through []string
	}{
		{"the list, the ports and the private addresses", []string{
			"http_access deny !allowed\n", "", "http_access deny !ports\n", "", "http_access deny private\n", ""}, []string{
			"a denied name", "a denied name by TLS", "a redirect to a denied name", "an allowed name at another port",
			"an address", "an address by TLS", "an address as a number", "an IPv6 address", "node: a denied name", "git: a denied name",
			"a private address", "a name of a private address", "a name of a private address by TLS", "a name of a public and a private address"}},
		// With all the names, as any may be the one that the address leads back to; Podman's
		// own for this machine, host.containers.internal, too.
		{"a ban on reverse lookups", []string{`dstdomain -n "/tmp/names"`, "dstdomain .example .internal"}, []string{
			"a denied name", "a denied name by TLS", "a redirect to a denied name", "node: a denied name", "git: a denied name",
			"an address", "an address by TLS", "an address as a number"}},
	} {
		t.Run("control without "+test.name, func(t *testing.T) {
			w.remove("gateway")
			w.gateway(port, test.changes...)
			w.proxyAnswers(v)
			compare(t, wanted(false, append(test.through, allowed...)...), w.asNode("vm", "inside", machine))
		})
	}

	t.Run("nothing gets out when the gateway is not there", func(t *testing.T) {
		run(t, "stop", "--time=1", w.name+"-gateway")
		compare(t, wanted(false), w.asNode("vm", "inside", machine, "--env=WITHIN=15"))
	})

	// The control: on ordinary networks every try gets through.
	t.Run("control on an ordinary network", func(t *testing.T) {
		flags := append(append(w.names(), trust()...), "--dns="+w.out, "--volume="+v.dir+"/workspace:/workspace", "--entrypoint=sleep")
		w.create("control", image, []string{"outside", "lan"}, flags, "300")
		t.Cleanup(func() { w.remove("control") })
		compare(t, wanted(true), w.asNode("control", "outside", w.out))
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.seen["a question with a secret"] {
			t.Error("the world was asked for no name, so the test proves nothing")
		}
	})

	// The control of the network's option: a bridge with an address leads to all that
	// listens on every address of this machine, and so does IPv6, which is there by itself.
	t.Run("control on an internal network as engines make it", func(t *testing.T) {
		w.network("plain", "--internal", fmt.Sprintf("--subnet=10.214.%d.0/28", w.n), fmt.Sprintf("--gateway=10.214.%d.1", w.n))
		w.create("beside", image, []string{"plain"}, []string{"--volume=" + v.dir + "/workspace:/workspace", "--entrypoint=sleep"}, "300")
		t.Cleanup(func() { w.remove("beside") })
		want := wanted(false, "the machine on the same network", "the machine by its link-local address")
		compare(t, want, w.asNode("beside", "plain", fmt.Sprintf("10.214.%d.1", w.n)))
	})
}

// proxyAnswers waits until a new gateway serves. It is asked from outside first, so that
// the agent's container hears of its hardware address.
func (w *world) proxyAnswers(v *vm) {
	w.t.Helper()
	eventually(w.t, "the gateway serves", func() bool {
		if response, err := http.Get(v.url + "/healthz"); err == nil {
			response.Body.Close()
		}
		return exec.Command(engine, "exec", "--user=node", w.name+"-vm", "curl", "-sfm", "3", "http://allowed.example/").Run() == nil
	}, func() string { return run(w.t, "logs", w.name+"-gateway") })
}

// The two forms differ in their networks alone.
func TestTheFormWithAGatewayIsAsHardAsTheOther(t *testing.T) {
	env := map[string]string{"VM_TOKEN": "x"}
	plain := readCompose(t, "compose.yaml", env).Services["vm"]
	behind := readCompose(t, "compose.egress.yaml", env).Services["vm"]

	delete(plain, "ports") // the gateway's
	for _, name := range []string{"networks", "extra_hosts", "dns", "depends_on"} {
		delete(behind, name)
	}
	environment := behind["environment"].(map[string]any)
	for name := range environment {
		if strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			delete(environment, name)
		}
	}
	sysctls := behind["sysctls"].(map[string]any)
	delete(sysctls, "net.ipv6.conf.all.disable_ipv6")
	delete(sysctls, "net.ipv6.conf.default.disable_ipv6")
	if diff := cmp.Diff(plain, behind); diff != "" {
		t.Errorf("vm (-compose.yaml +compose.egress.yaml):\n%s", diff)
	}
}

func TestImageTheGatewayRefusesWhatIsNoName(t *testing.T) {
	needImage(t)
	defaults := regexp.MustCompile(`(?m)^[^#\s]+`).FindAllString(read(t, "egress/allow"), -1)
	slices.Sort(defaults)
	standard := strings.Join(defaults, " ")
	for _, test := range []struct{ name, allow, says string }{
		{"nothing is the default", "", "gateway: lets through " + standard},
		{"white space is the default", " ", "gateway: lets through " + standard},
		{"the default by its name, and another", "default,zz.example", "gateway: lets through " + standard + " zz.example"},
		{"names in any case, by commas, spaces and lines", "B.example, a.example\n.C.example", "gateway: lets through .c.example a.example b.example"},
		{"a name below another, which Squid would not take", "x.a.example .a.example a.example a.example", "gateway: lets through .a.example"},
		{"an address", "a.example 203.0.113.1", `EGRESS_ALLOW has "203.0.113.1", which is no host name`},
		{"an address in hex", "0xcb.0.0x71.0x01", `EGRESS_ALLOW has "0xcb.0.0x71.0x01", which is no host name`},
		{"an IPv6 address", "::1", `EGRESS_ALLOW has "::1", which is no host name`},
		{"a URL", "https://a.example/", `EGRESS_ALLOW has "https://a.example/", which is no host name`},
		{"a port", "a.example:443", `EGRESS_ALLOW has "a.example:443", which is no host name`},
		{"a star", "*", `EGRESS_ALLOW has "*", which is no host name`},
		{"a star below a name", "*.a.example", `EGRESS_ALLOW has "*.a.example", which is no host name`},
		{"a name without a dot", "localhost", `EGRESS_ALLOW has "localhost", which is no host name`},
		{"a dot alone", ".", `EGRESS_ALLOW has ".", which is no host name`},
		{"a whole domain of the world", ".com", `EGRESS_ALLOW has ".com", which is no host name`},
		{"a file of Squid's", `"/etc/passwd"`, `EGRESS_ALLOW has ""/etc/passwd"", which is no host name`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(engine, "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--env=INSIDE=10.0.0.2", "--env=VM=10.0.0.3", "--env=EGRESS_ALLOW="+test.allow, "cockpit-vm-gateway")
			output, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(output)+"\n", test.says) {
				t.Errorf("%v: it said %q, want %q", err, output, test.says)
			}
		})
	}
}

// When one of its two programs ends, so does the container, and the engine starts it
// again: no half of a gateway is left.
func TestImageTheGatewayEndsWithEitherProgram(t *testing.T) {
	w := newWorld(t)
	w.insideNetwork()
	_, port, _ := net.SplitHostPort(freeAddr(t))
	w.gateway(port)
	t.Cleanup(func() { w.remove("gateway") })
	gateway := w.name + "-gateway"
	running := func() string { return run(t, "inspect", "--format={{.State.Running}}", gateway) }
	for _, program := range []string{"squid", "socat"} {
		t.Run(program, func(t *testing.T) {
			eventually(t, program+" runs", func() bool {
				output, _ := exec.Command(engine, "exec", gateway, "sh", "-c", "cat /proc/[0-9]*/comm").Output()
				return strings.Contains(string(output), program)
			}, running)
			kill := `for p in /proc/[0-9]*; do if [ "$(cat $p/comm)" = ` + program + ` ]; then kill -KILL ${p#/proc/}; fi; done`
			exec.Command(engine, "exec", gateway, "sh", "-c", kill).Run() // ends with the container
			eventually(t, "the container ends", func() bool { return running() == "false" }, running)
			run(t, "start", gateway)
		})
	}
}

// The gateway's health check wants both programs, since compose's --wait believes it. It
// runs here beside others that listen in their place.
func TestImageTheGatewayIsHealthyWithBothProgramsOnly(t *testing.T) {
	needImage(t)
	name := fmt.Sprintf("e2e-health-%d", time.Now().UnixNano())
	run(t, "run", "--detach", "--name="+name, "--network=none", "--entrypoint=sleep", "cockpit-vm-gateway", "300")
	t.Cleanup(func() { exec.Command(engine, "rm", "--force", name).Run() })
	isHealthy := func() bool { return exec.Command(engine, "exec", name, "healthcheck.sh").Run() == nil }
	if isHealthy() {
		t.Error("it is healthy with neither")
	}
	run(t, "exec", "--detach", name, "socat", "TCP-LISTEN:3001,fork", "SYSTEM:true")
	eventually(t, "socat listens", func() bool {
		return exec.Command(engine, "exec", name, "grep", "-q", ":0BB9 00000000:0000 0A", "/proc/net/tcp").Run() == nil
	}, func() string { return "" })
	if isHealthy() {
		t.Error("it is healthy with one of them")
	}
	run(t, "exec", "--detach", name, "socat", "TCP-LISTEN:3128,fork", "SYSTEM:true")
	eventually(t, "it is healthy with both", isHealthy, func() string { return "" })
}
