package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// compose.egress.yaml, by the engine's own commands. The world outside is this
// machine, by its addresses on networks of the test's: 203.0.113.0/24 is nobody's, and
// stands for the public.

// run runs the engine, or fails the test.
func run(t testing.TB, args ...string) string {
	t.Helper()
	output, err := exec.Command(engine, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", engine, args, err, output)
	}
	return strings.TrimSpace(string(output))
}

// world is what there is outside: hosts on this machine, and the networks that lead to
// them or don't.
type world struct {
	t      *testing.T
	name   string // of all that this test makes, and what it begins with
	n      int    // a number of the test's in each of its networks
	out    string // this machine where everybody may see it
	out6   string // the same, by IPv6
	lan    string // the same, on a private network
	inside string // what the addresses of the network without a way out begin with
	port   string // of a listener on every address of this machine
	model  *model
	mu     sync.Mutex
	seen   map[string]bool // the hosts that were asked for
}

// network makes a network, which goes with the test.
func (w *world) network(kind string, flags ...string) string {
	w.t.Helper()
	name := w.name + "-" + kind
	run(w.t, append(append([]string{"network", "create"}, flags...), name)...)
	w.t.Cleanup(func() { run(w.t, "network", "rm", name) })
	return name
}

// insideNetwork makes the network of compose.egress.yaml. Its option for the bridge is
// Docker's; Podman gives an internal network's bridge no address where it has no name
// server to serve there.
func (w *world) insideNetwork() string {
	inside := readCompose(w.t, "compose.egress.yaml", w.env()).Networks["inside"]
	flags := []string{"--subnet=" + inside.IPAM.Config[0].Subnet}
	if inside.Internal {
		flags = append(flags, "--internal")
	}
	for name, value := range inside.DriverOpts {
		if engine != "podman" {
			flags = append(flags, "--opt="+name+"="+value)
		} else if name == "com.docker.network.bridge.inhibit_ipv4" && value == "true" {
			flags = append(flags, "--disable-dns")
		} else {
			w.t.Fatalf("compose.egress.yaml has the option %q, which this test can't tell Podman", name)
		}
	}
	return w.network("inside", flags...)
}

func (w *world) env() map[string]string {
	return map[string]string{
		"VM_TOKEN": "token-of-the-test", "ANTHROPIC_API_KEY": "key-of-the-test", "ANTHROPIC_BASE_URL": "https://model.example",
		"EGRESS_NET": w.inside, "EGRESS_ALLOW": "ALLOWED.example,model.example private.example mixed.example .below.example",
	}
}

// names are what the world's names lead to.
func (w *world) names() (flags []string) {
	for _, name := range []string{"allowed", "model", "denied", "mixed", "a.below"} {
		flags = append(flags, "--add-host="+name+".example:"+w.out)
	}
	return append(flags, "--add-host=private.example:"+w.lan, "--add-host=mixed.example:"+w.lan)
}

// newWorld makes the networks; its hosts listen once somebody is on them.
func newWorld(t *testing.T) *world {
	needRoot(t)
	t.Helper()
	now := time.Now().UnixNano() / 1000
	w := &world{t: t, name: "egress-" + strconv.FormatInt(now, 36), model: &model{}, seen: map[string]bool{}}
	outside := w.name + "-outside"
	var output []byte
	for i := range 15 { // the addresses of others who test at the same time are taken
		w.n = (int(now)+i)%15 + 1
		w.out, w.out6 = fmt.Sprintf("203.0.113.%d", w.n*16+1), fmt.Sprintf("2001:db8:%d::1", w.n)
		var err error
		// The world tells its names itself, at the port that podman's own server would take.
		output, err = exec.Command(engine, "network", "create", "--disable-dns", fmt.Sprintf("--subnet=203.0.113.%d/28", w.n*16), "--gateway="+w.out,
			"--ipv6", fmt.Sprintf("--subnet=2001:db8:%d::/64", w.n), "--gateway="+w.out6, outside).CombinedOutput()
		if err == nil {
			t.Cleanup(func() { run(t, "network", "rm", outside) })
			w.lan, w.inside = fmt.Sprintf("10.212.%d.1", w.n), fmt.Sprintf("10.213.%d", w.n)
			w.network("lan", fmt.Sprintf("--subnet=10.212.%d.0/28", w.n), "--gateway="+w.lan)
			return w
		}
	}
	t.Fatalf("no network can be made: %s", output)
	return nil
}

// create makes a container, which goes with the test, and puts it on networks, each
// NAME or NAME:ADDRESS.
func (w *world) create(kind, image string, networks, flags []string, command ...string) string {
	w.t.Helper()
	name := w.name + "-" + kind
	for i, network := range networks {
		network, address, fixed := strings.Cut(network, ":")
		args := []string{"--network=" + w.name + "-" + network}
		if fixed {
			args = append(args, "--ip="+address)
		}
		if i == 0 {
			run(w.t, slices.Concat([]string{"create", "--name=" + name}, args, flags, []string{image}, command)...)
			continue
		}
		run(w.t, "network", "connect", w.name+"-"+network, name)
	}
	run(w.t, "start", name)
	return name
}

func (w *world) remove(kind string) {
	run(w.t, "rm", "--force", "--time=1", "--volumes", w.name+"-"+kind)
}

// gateway starts the gateway as compose.egress.yaml has it, with a private network
// beside it, and with changes of squid.conf: what is there, and what is to be.
func (w *world) gateway(port string, changes ...string) {
	w.t.Helper()
	service := readCompose(w.t, "compose.egress.yaml", w.env()).Services["gateway"]
	flags := append(flagsOf(w.t, service), append(w.names(), "--dns="+w.out)...)
	for _, entry := range service["ports"].([]any) {
		flags = append(flags, "--publish="+strings.Replace(entry.(string), ":3001:", ":"+port+":", 1))
	}
	if len(changes) > 0 {
		path := filepath.Join(newDir(w.t), "squid.conf")
		conf := read(w.t, "egress/squid.conf")
		changed := strings.NewReplacer(changes...).Replace(conf)
		if changed == conf {
			w.t.Fatalf("squid.conf has no %q", changes)
		}
		if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
			w.t.Fatal(err)
		}
		flags = append(flags, "--volume="+path+":/etc/egress/squid.conf:ro")
	}
	w.create("gateway", "cockpit-vm-gateway", []string{"inside:" + w.inside + ".2", "outside", "lan"}, flags)
}

// agent starts the container vm as compose.egress.yaml has it.
func (w *world) agent(ca, port string) *vm {
	w.t.Helper()
	service := readCompose(w.t, "compose.egress.yaml", w.env()).Services["vm"]
	dir := newDir(w.t)
	for name, text := range map[string]string{"tries": tries, "ca.pem": ca} {
		if err := os.WriteFile(filepath.Join(dir, "workspace", name), []byte(text), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	flags := append(flagsOf(w.t, service), "--volume="+dir+"/workspace:/workspace", "--volume="+dir+"/home:/home/node", "--env=VM_WARM=false")
	w.create("vm", image, []string{"inside:" + w.inside + ".3"}, append(flags, trust()...))
	w.t.Cleanup(func() { w.remove("vm") })
	return &vm{t: w.t, url: "http://127.0.0.1:" + port, token: w.env()["VM_TOKEN"], model: w.model, container: w.name + "-vm",
		workspace: "/workspace", dir: dir, log: &buffer{}, done: make(chan struct{})}
}

// trust are the variables by which programs take the test's authority for a good one.
func trust() (flags []string) {
	for _, name := range []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"} {
		flags = append(flags, "--env="+name+"=/workspace/ca.pem")
	}
	return flags
}

// listen begins to serve the world: on each address what says "reached", the model by
// its name, and a redirect from an allowed host to one that isn't.
func (w *world) listen() (ca string) {
	w.t.Helper()
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.see(r.Host)
		switch {
		case r.Host == "model.example":
			w.model.ServeHTTP(rw, r)
		case strings.HasSuffix(r.URL.Path, "/info/refs"): // as git asks
			fmt.Fprintf(rw, "%040d\trefs/heads/reached\n", 1)
		case r.URL.Path == "/package": // as npm asks
			fmt.Fprint(rw, `{"name":"package","dist-tags":{"latest":"1.0.0"},`+
				`"versions":{"1.0.0":{"name":"package","version":"1.0.0","description":"reached"}}}`)
		case r.URL.Path == "/redirect":
			http.Redirect(rw, r, "http://denied.example/", http.StatusFound)
		default:
			fmt.Fprintf(rw, "<title>reached %s</title>", r.Host)
		}
	})
	quiet := log.New(io.Discard, "", 0)
	serve := func(address string, config *tls.Config) string {
		var listener net.Listener
		var err error
		// An address of IPv6 is not in use at once, as is said of tries.
		eventually(w.t, "this machine listens on "+address, func() bool {
			listener, err = net.Listen("tcp", address)
			return err == nil
		}, func() string { return fmt.Sprint(err) })
		if config != nil {
			listener = tls.NewListener(listener, config)
		}
		server := &http.Server{Handler: handler, ErrorLog: quiet}
		go server.Serve(listener)
		w.t.Cleanup(func() { server.Close() })
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		return port
	}
	certificate, ca := authority(w.t, "allowed.example", "denied.example", "model.example", "private.example", "mixed.example", "a.below.example")
	for _, address := range []string{w.out, w.lan, "[" + w.out6 + "]"} {
		serve(address+":80", nil)
		serve(address+":443", &tls.Config{Certificates: []tls.Certificate{certificate}})
		serve(address+":8080", nil)
	}
	w.port = serve(":0", nil)

	w.tellNames()
	return ca
}

// tellNames answers every question for a name (RFC 1035, 4.1) with this machine's public
// address, but for none's, and notes that it was asked for a secret one.
func (w *world) tellNames() {
	w.t.Helper()
	names, err := net.ListenPacket("udp", w.out+":53")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { names.Close() })

	answer := func(question []byte) []byte {
		if bytes.Contains(question, []byte("secret")) {
			w.see("a question with a secret")
		}
		answer := slices.Clone(question)
		answer[2], answer[3] = 0x81, 0x80 // an answer, without an error
		isA := bytes.Contains(question, []byte{0, 0, 1, 0, 1})
		isNowhere := bytes.Contains(question, []byte("none"))
		if isA && !isNowhere && question[11] == 0 { // and nothing behind the question
			answer[7] = 1
			answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
			answer = append(answer, net.ParseIP(w.out).To4()...)
		}
		return answer
	}
	go func() {
		for buffer := make([]byte, 512); ; {
			size, from, err := names.ReadFrom(buffer)
			if err != nil {
				return
			}
			if size > 12 {
				names.WriteTo(answer(buffer[:size]), from)
			}
		}
	}()
}

// see notes what the world was asked.
func (w *world) see(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[what] = true
}

// authority makes a certificate for hosts, and that of who signs it.
func authority(t testing.TB, hosts ...string) (certificate tls.Certificate, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	signer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of the test"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	theirs := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "hosts of the test"}, NotBefore: signer.NotBefore, NotAfter: signer.NotAfter,
		DNSNames: hosts,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	signed, err := x509.CreateCertificate(rand.Reader, theirs, signer, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	signers, err := x509.CreateCertificate(rand.Reader, signer, signer, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signers})
	return tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: key}, string(text)
}
