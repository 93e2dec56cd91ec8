#!/usr/bin/env bash
# The main job, from bare hosts: provision, release, send orders through the load balancer, say what to try next.
. "$(dirname "$0")/lib.sh"

state=.lab/trading-lab
url=http://127.0.0.1:8080

step "The fleet and its first release (site.yml)" ansible-playbook site.yml
step "Orders through $url" trading-bot load --url "$url" --token-file $state/secrets/api_desk_token \
  --rate 200 --count 2000 --accounts 1000 --log "$state/demo-orders.jsonl"
ansible-playbook release-status.yml

cat <<EOT

The fleet is up, and $url takes orders. Try:

  curl -s $url/api/orders -H "Authorization: Bearer \$(cat $state/secrets/api_desk_token)" -H 'X-Account-Id: demo' \\
    -d '{"client_order_id":"my-first","symbol":"BTC-USDT","side":"buy","type":"limit","quantity":"0.001","price":"50000"}'
                                            an order; the same line again gives the same answer, and no second order
  . .venv/bin/activate                      puts ansible-playbook and trading-bot on your path; then
  ansible-playbook release-status.yml       what runs where, and who gets which traffic
  ansible-playbook deploy.yml --check --diff    what a deployment would change
  ansible-playbook deploy.yml               nothing to do: changed=0
  make demo-down                            removes all of it
EOT
