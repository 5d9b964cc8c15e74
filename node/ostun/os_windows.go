package ostun

import "fmt"

// DefaultName is the interface's name unless told otherwise.
const DefaultName = "Hedge"

const needs = "it takes an administrator, and wintun.dll (www.wintun.net) beside hedge.exe"

func open(o Options) (*Device, error) { return openDriver(o.Name) }

// command is what does one step, by netsh. Nothing of it outlives a restart of the system (store=active).
func command(name string, o op) ([][]string, error) {
	ip := "ipv6"
	if o.addr.Is4() || o.route.dst.Addr().Is4() {
		ip = "ipv4"
	}
	netsh := func(args ...string) ([][]string, error) {
		return [][]string{append([]string{"netsh", "interface", ip}, append(args, "store=active")...)}, nil
	}
	switch o.verb {
	case setMTU:
		six, _ := netsh("set", "subinterface", name, fmt.Sprintf("mtu=%d", o.mtu))
		ip = "ipv4"
		four, err := netsh("set", "subinterface", name, fmt.Sprintf("mtu=%d", o.mtu))
		return append(four, six...), err
	case setUp:
		return nil, nil // it is up from its making
	case addAddr:
		if o.addr.Is4() {
			return netsh("add", "address", name, o.addr.String(), "255.255.255.255")
		}
		return netsh("add", "address", name, o.addr.String()+"/128")
	case delAddr:
		return netsh("delete", "address", name, o.addr.String())
	case addRoute, delRoute:
		if o.route.other {
			return nil, errRules
		}
		verb := map[verb]string{addRoute: "add", delRoute: "delete"}[o.verb]
		return netsh(verb, "route", o.route.dst.String(), name)
	}
	return nil, errRules
}
