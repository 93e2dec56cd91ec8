#!/bin/sh
# certificate-metrics FILE [CERTIFICATE...]: leave for the node exporter when each certificate ends; 0 for one that cannot be read.
set -eu

file=$1
shift
name=trading_certificate_expires_timestamp_seconds
new=$(mktemp "$file.XXXXXX")
trap 'rm -f "$new"' EXIT
{
  echo "# HELP $name When a certificate on this host ends."
  echo "# TYPE $name gauge"
  for path; do
    end=$(openssl x509 -noout -enddate -in "$path") || end=
    seconds=0
    [ -z "$end" ] || seconds=$(date -d "${end#notAfter=}" +%s)
    echo "$name{path=\"$path\"} $seconds"
  done
} >"$new"
chmod 0644 "$new"
mv "$new" "$file"
