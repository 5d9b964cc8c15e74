package hosts

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/tailscale/hujson"
)

// Baseline is what a file says of another tunnel.
//
// Up and Down are run by bash, with NS_A and NS_B, the names of the namespaces, ADDR_A and ADDR_B, their addresses on the
// wire, WIRE, its MTU, and DIR, a folder of the baseline's own, in the environment. What Up leaves running in the namespaces
// is the tunnel: its processor time and memory are measured, and it is killed after Down.
type Baseline struct {
	Name    string `json:"name"`
	Up      string `json:"up"`
	Down    string `json:"down"`    // may be empty
	Address string `json:"address"` // by which a reaches b; if it begins with "$", the rest is a shell command that prints it
}

// ReadBaselines reads a list of them from a file of JSON, with comments and trailing commas if need be (HuJSON).
func ReadBaselines(file string) ([]Baseline, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	list, err := parseBaselines(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

func parseBaselines(b []byte) (list []Baseline, err error) {
	if b, err = hujson.Standardize(b); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	taken := []string{HedgeTUN, HedgeNarrow, HedgeUser, AgainstTUN, AgainstUser, WireGuard, WireGuardWide, Veth, RelayTLS, RelayUDP}
	for i, x := range list {
		if x.Name == "" || x.Up == "" || x.Address == "" {
			return nil, fmt.Errorf("entry %d needs a name, up and address", i+1)
		}
		if slices.Contains(taken, x.Name) {
			return nil, fmt.Errorf("entry %d: the name %q is taken", i+1, x.Name)
		}
		taken = append(taken, x.Name)
	}
	return list, nil
}
