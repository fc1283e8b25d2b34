package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

// search is a line for the agent's Bash that looks for a secret wherever the
// agent can read: environments, arguments and memory of all processes, and
// files. The secret itself is not in the line, or it would find that.
func search(name, secret string) string {
	half := len(secret) / 2
	return fmt.Sprintf(`A='%s'; B='%s'; for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do grep -qaF "$A$B" "$f" 2>/dev/null && echo "%s is in $f"; done; `+
		`grep -rlaF "$A$B" "$HOME" . /etc /run /tmp /usr/local/bin /var/lib /opt 2>/dev/null | sed 's/^/%s is in /'; node -e '%s' %s %s; `,
		secret[:half], secret[half:], name, name, searchMemory, name, hex.EncodeToString([]byte(secret)))
}

const searchMemory = `const fs=require("fs"),needle=Buffer.from(process.argv[2],"hex");` +
	`for(const p of fs.readdirSync("/proc").filter(x=>/^[0-9]+$/.test(x)&&x!=process.pid)){try{const m=fs.openSync("/proc/"+p+"/mem","r");` +
	`for(const l of fs.readFileSync("/proc/"+p+"/maps","utf8").split(String.fromCharCode(10))){const a=l.match(/^([0-9a-f]+)-([0-9a-f]+) rw/);if(!a)continue;` +
	`const s=parseInt(a[1],16),n=parseInt(a[2],16)-s;if(n>2**27)continue;const b=Buffer.alloc(n);try{const k=fs.readSync(m,b,0,n,s);` +
	`if(b.subarray(0,k).includes(needle)){console.log(process.argv[1]+" is in the memory of "+p);break}}catch{}}}catch{}}`

// credentials are the ways to the model's API that the key proxy keeps.
var credentials = []struct{ variable, secret, header string }{
	{"ANTHROPIC_API_KEY", "sk-ant-real-0123456789", "X-Api-Key"},
	{"CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-real-0123456789", "Authorization"},
	{"ANTHROPIC_AUTH_TOKEN", "gateway-real-0123456789", "Authorization"},
}

func TestTheModelSeesTheKeyAndTheAgentDoesNot(t *testing.T) {
	for _, credential := range credentials {
		t.Run(credential.variable, func(t *testing.T) {
			name, secret, token := credential.variable, credential.secret, "the-token-of-the-relay"
			v := start(t, "ANTHROPIC_API_KEY=", name+"="+secret, "VM_TOKEN="+token)
			v.token = token
			// The CLI keeps some variables from its Bash; its own environment has them.
			seen := v.bash("success", `tr '\0' '\n' </proc/$PPID/environ; env | sort`)
			valueOf := func(name string) string {
				_, rest, _ := strings.Cut("\n"+seen, "\n"+name+"=")
				value, _, _ := strings.Cut(rest, "\n")
				return value
			}
			placeholder, base := valueOf(name), valueOf("ANTHROPIC_BASE_URL")
			if !strings.HasPrefix(placeholder, "placeholder-") || !strings.HasPrefix(base, "http://127.0.0.1:") {
				t.Errorf("the agent's credentials: %q at %q", placeholder, base)
			}
			if strings.Contains(seen, secret) || strings.Contains(seen, token) || strings.Contains(seen, "VM_") {
				t.Errorf("the agent's environment:\n%s", seen)
			}
			bearer := map[string]string{"X-Api-Key": "", "Authorization": "Bearer "}[credential.header]
			for _, call := range v.model.Calls() {
				if got := call.Key + call.Auth; got != bearer+secret {
					t.Errorf("the model saw the key %q and authorization %q", call.Key, call.Auth)
				}
			}
			if len(v.model.Calls()) == 0 {
				t.Error("the model saw nothing")
			}
			request, _ := http.NewRequest(http.MethodPost, base+"/v1/messages", strings.NewReader("{}"))
			request.Header.Set(credential.header, bearer+placeholder)
			if response, err := http.DefaultClient.Do(request); err != nil || response.StatusCode != http.StatusForbidden {
				t.Errorf("the placeholder after its command: %v %v", response, err)
			}
			if image == "" && os.Getuid() == 0 {
				return // the agent is root, as the server is, and could read anything: the container shows the rest
			}
			// The control: what surely is in the CLI's environment and memory is found there.
			if control := v.bash("success", search("control", name+"=place")); !strings.Contains(control, "/environ") || !strings.Contains(control, "in the memory of") {
				t.Errorf("the search finds nothing, so it proves nothing:\n%s", control)
			}
			if found := v.bash("success", search("secret", secret)+search("token", token)+"echo searched"); found != "searched" {
				t.Errorf("the agent found:\n%s", found)
			}
		})
	}
}

// A proxy for the network must not get what is for the server's loopback: the
// prompt, in clear, and the placeholder. In the control it would.
func TestPromptsDoNotTakeTheNetworksProxy(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		var got atomic.Int32
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/v1/messages") {
				got.Add(1)
			}
			w.WriteHeader(http.StatusBadGateway)
		}))
		defer proxy.Close()
		start(t, name+"="+proxy.URL).ask("success", "hello")
		if got.Load() > 0 {
			t.Errorf("with %s, that got %d of the agent's requests", name, got.Load())
		}
		control := start(t, name+"="+proxy.URL, "VM_KEY_PROXY=false")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go control.post(ctx, "hello", "")
		control.eventually("without the key proxy that gets a request", func() bool { return got.Load() > 0 })
	}
}
