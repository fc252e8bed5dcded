# A Homebrew formula: a template. Before a tap takes it, set url and sha256 to a release's sdist, then run
#   brew update-python-resources quantkit.rb
# which adds the Python packages. Kernels are compiled at the install; brew always has a compiler.
class Quantkit < Formula
  include Language::Python::Virtualenv

  desc "Convert Hugging Face checkpoints to GGUF, AWQ, GPTQ and other quantized formats"
  homepage "HOMEPAGE"
  url "HOMEPAGE/releases/download/vVERSION/quantkit-VERSION.tar.gz"
  sha256 "SHA256"
  license "Apache-2.0"

  depends_on "python@3.13"

  def install
    ENV["QUANTKIT_KERNELS"] = "1"
    virtualenv_install_with_resources
    generate_completions_from_executable(bin/"quantkit", shell_parameter_format: :typer)
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/quantkit --version")
    assert_match "no-such-folder", shell_output("#{bin}/quantkit inspect no-such-folder 2>&1", 1)
  end
end
