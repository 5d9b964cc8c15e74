package ostun

import "fmt"

// DefaultName lets the system choose: utun0, utun1, and so on.
const DefaultName = "utun"

const needs = "it takes root"

func open(o Options) (*Device, error) { return openDriver(o.Name) }

// command is what does one step, by ifconfig(8) and route(8).
func command(name string, o op) ([][]string, error) {
	inet := "inet6"
	switch {
	case o.addr.Is4(), o.route.dst.Addr().Is4():
		inet = "inet"
	}
	switch o.verb {
	case setMTU:
		return [][]string{{"ifconfig", name, "mtu", fmt.Sprint(o.mtu)}}, nil
	case setUp:
		return [][]string{{"ifconfig", name, "up"}}, nil
	case addAddr:
		if o.addr.Is4() { // a point-to-point link needs a far end
			return [][]string{{"ifconfig", name, inet, o.addr.String() + "/32", o.addr.String(), "alias"}}, nil
		}
		return [][]string{{"ifconfig", name, inet, o.addr.String(), "prefixlen", "128", "alias"}}, nil
	case delAddr:
		return [][]string{{"ifconfig", name, inet, o.addr.String(), "-alias"}}, nil
	case addRoute, delRoute:
		if o.route.other {
			return nil, errRules
		}
		verb := map[verb]string{addRoute: "add", delRoute: "delete"}[o.verb]
		return [][]string{{"route", "-q", "-n", verb, "-" + inet, o.route.dst.String(), "-interface", name}}, nil
	}
	return nil, errRules
}
